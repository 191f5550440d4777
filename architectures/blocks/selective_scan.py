"""The selective scan of Mamba: a state-space recurrence whose step size and projections depend on the input.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t . h_t + D u_t, with h_{-1} = 0, one state vector per channel.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; the published kernel is in mamba-ssm (Apache-2.0), which is used where
it is installed and the tensors are on a CUDA device. The scan here is plain PyTorch: blocks of `BLOCK` positions are
scanned at the same time, then the blocks' ends by the same rule, then the results are joined. Its cost is linear in the
length, its number of operations logarithmic. Long sequences go segment by segment, and the states of a segment are
computed again in the backward pass, so memory holds the states of one segment only. Tracers see one operation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 16  # positions scanned one after the other; the number of operations grows with its logarithm to this base
SEGMENT_ELEMENTS = 2**22  # state elements of one sample held at a time: 16 MiB in float32


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
    """Return y (B, L, E) for u and delta (B, L, E), a (E, N) negative, b and c (B, L, N), d (E,).

    delta is the positive step size, softplus already applied. The scan runs in float32 at least, also under autocast;
    y has the dtype of u.
    """
    wanted = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        precise = torch.promote_types(wanted, torch.float32)
        u, delta, a, b, c = (tensor.to(precise) for tensor in (u, delta, a, b, c))
        kernel = _fused_kernel() if u.is_cuda and precise == torch.float32 else None
        y = scan_in_segments(u, delta, a, b, c) if kernel is None else scan_by_kernel(kernel, u, delta, a, b, c)
        if d is not None:
            y = torch.addcmul(y, u, d.to(precise))
    return y.to(wanted)


def scan_in_segments(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, elements: int = SEGMENT_ELEMENTS
) -> Tensor:
    """Return y without the D term; `elements` bounds the states of one sample that are held at a time."""
    return _scan(u, delta, a, b, c, max(BLOCK, elements // a.numel()))[0]


def scan_by_kernel(kernel: Callable[..., Any], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return y without the D term by mamba-ssm's kernel, which wants the length last and contiguous."""
    u, delta, b, c = (tensor.mT.contiguous() for tensor in (u, delta, b, c))
    return kernel(u, delta, a.contiguous(), b, c).mT


def _forward(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """Return y (B, L, E) and the states (B, segments, E, N) that the segments start from."""
    state = u.new_zeros(u.shape[0], *a.shape)
    outputs, starts = [], []
    for part in _parts(u.shape[1], segment):
        starts.append(state)
        states = _states(u[:, part], delta[:, part], a, b[:, part], state)[1]
        outputs.append((states @ c[:, part, :, None])[..., 0])
        state = states[:, -1]
    return torch.cat(outputs, 1), torch.stack(starts, 1)


def _backward(
    slope: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor, segment: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, a, b, c for that of y (B, L, E), segments from the last to the first."""
    to_u, to_delta, to_a, to_b, to_c = (torch.empty_like(tensor) for tensor in (u, delta, a, b, c))
    to_a.zero_()
    from_later = torch.zeros_like(starts[:, 0])  # the gradient that the next segment gives to this one's last state
    for number, part in reversed(list(enumerate(_parts(u.shape[1], segment)))):
        step, x, start = delta[:, part], u[:, part], starts[:, number]
        decay, states = _states(x, step, a, b[:, part], start)
        to_c[:, part] = (slope[:, part, None] @ states)[:, :, 0]
        # The gradient of the states is the same recurrence run backwards in time.
        to_states = (slope[:, part, :, None] * c[:, part, None]).flip(1)
        to_states[:, 0] += from_later
        later = torch.cat([torch.zeros_like(decay[:, :1]), decay[:, 1:].flip(1)], 1)
        to_states = _scan_in_place(later, to_states).flip(1)
        from_later = decay[:, 0] * to_states[:, 0]
        to_values = (to_states @ b[:, part, :, None])[..., 0]
        to_b[:, part] = ((step * x)[:, :, None] @ to_states)[:, :, 0]
        to_u[:, part] = to_values * step
        to_exponent = decay.mul_(to_states)
        to_exponent[:, 1:] *= states[:, :-1]
        to_exponent[:, 0] *= start
        to_a += (to_exponent * step[..., None]).sum((0, 1))
        to_delta[:, part] = (to_exponent * a).sum(-1) + to_values * x
    return to_u, to_delta, to_a, to_b, to_c


_scan = torch.library.custom_op("autoseg::selective_scan", _forward, mutates_args=())
_scan_backward = torch.library.custom_op("autoseg::selective_scan_backward", _backward, mutates_args=())


@_scan.register_fake
def _(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[0], -(-u.shape[1] // segment), *a.shape)


@_scan_backward.register_fake
def _(
    slope: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor, segment: int
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (u, delta, a, b, c))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.segment = inputs
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_scan_backward(slope, *ctx.saved_tensors, ctx.segment), None


_scan.register_autograd(_differentiate, setup_context=_keep)


def _parts(length: int, segment: int) -> list[slice]:
    return [slice(start, min(start + segment, length)) for start in range(0, length, segment)]


def _states(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return decay and states (B, S, E, N) of a segment that starts from `start` (B, E, N)."""
    decay = torch.exp(delta[..., None] * a)
    value = (delta * u)[..., None] * b[:, :, None]
    value[:, 0].addcmul_(decay[:, 0], start)
    return decay, _scan_in_place(decay.clone(), value)


def _scan_in_place(decay: Tensor, value: Tensor) -> Tensor:
    """Return h with h_t = decay_t h_{t-1} + value_t, h_{-1} = 0; both tensors (B, L, *) are overwritten."""
    length = decay.shape[1]
    blocks, rest = divmod(length, BLOCK)
    if blocks < 2:
        for t in range(1, length):
            value[:, t].addcmul_(decay[:, t], value[:, t - 1])
        return value
    whole = length - rest
    decays = decay[:, :whole].unflatten(1, (blocks, BLOCK))
    values = value[:, :whole].unflatten(1, (blocks, BLOCK))
    for t in range(1, BLOCK):  # every block from a zero state; decays become products since the block's start
        values[:, :, t].addcmul_(decays[:, :, t], values[:, :, t - 1])
        decays[:, :, t].mul_(decays[:, :, t - 1])
    ends = _scan_in_place(decays[:, :, -1].clone(), values[:, :, -1].clone())
    values[:, 1:].addcmul_(decays[:, 1:], ends[:, :-1, None])
    for t in range(whole, length):
        value[:, t].addcmul_(decay[:, t], value[:, t - 1])
    return value


@cache
def _fused_kernel() -> Callable[..., Any] | None:
    """Return mamba-ssm's CUDA kernel, None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn
