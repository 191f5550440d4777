"""The selective scan of Mamba: a state-space recurrence whose step size and projections depend on the input.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t . h_t + D u_t, with h_{-1} = 0, one state vector per channel.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; the published kernel is in mamba-ssm (Apache-2.0), which is used where
it is installed and the tensors are on a CUDA device. The scan here is plain PyTorch: the ends of all blocks of `BLOCK`
positions are found at the same time, joined by the same rule, then all blocks are scanned from their true start. Its
cost is linear in the length, its number of operations logarithmic. Long sequences go segment by segment, and the states
of a segment are computed again in the backward pass, so memory holds the states of one segment only; on a CPU segments
are small enough for its cache. States are held as (B, L, N, E), channels innermost. Tracers see one operation, and
torch's counter of floating point operations counts those of the recurrence.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

BLOCK = 16  # positions scanned one after the other; the number of operations grows with its logarithm to this base
SEGMENT_ELEMENTS = {"cpu": 2**19}  # state elements of a batch held at a time: 2 MiB in float32, for the cache
USUAL_SEGMENT_ELEMENTS = 2**22  # on other devices
LEAST_SEGMENT = 4 * BLOCK  # positions; one state of each segment is kept for the backward pass
WIDE = 2**14  # state elements of one position from which on scanning one after the other is fastest
# Operations per state element. Forward: decay 2, value 1, recurrence 2, output 2. Backward: the first five again, those
# of C 2, of the states 1 and their recurrence 2, of delta B u 2, of B 2, of the exponents 2, of delta 2 and of A 2.
OPERATIONS, BACKWARD_OPERATIONS = 7, 20


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None) -> Tensor:
    """Return y (B, L, E) for u and delta (B, L, E), a (E, N) negative, b and c (B, L, N), d (E,).

    Or several scans at once: y (B, G, L, E) for u and delta (B, G, L, E), a (G, E, N), b and c (B, G, L, N), d (G, E).
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
            y = torch.addcmul(y, u, d.to(precise).unsqueeze(-2))
    return y.to(wanted)


def scan_in_segments(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, elements: int | None = None
) -> Tensor:
    """Return y without the D term; `elements` bounds the states of the batch that are held at a time."""
    if elements is None:
        elements = SEGMENT_ELEMENTS.get(u.device.type, USUAL_SEGMENT_ELEMENTS)
    segment = max(LEAST_SEGMENT, elements // (u.shape[0] * a.numel()))
    if u.ndim == 3:
        return _scan(u, delta, a[None], b, c, segment)[0]
    scans = [tensor.flatten(0, 1) for tensor in (u, delta, a.expand(u.shape[0], *a.shape), b, c)]
    return _scan(*scans, segment)[0].view(u.shape)


def scan_by_kernel(kernel: Callable[..., Any], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return y without the D term by mamba-ssm's kernel, which wants the length last, groups among the channels."""
    shape = u.mT.shape
    u, delta, b, c = (tensor.mT.contiguous() for tensor in (u, delta, b, c))
    if len(shape) == 4:
        u, delta, a = u.flatten(1, 2), delta.flatten(1, 2), a.flatten(0, 1)
    return kernel(u, delta, a.contiguous(), b, c).view(shape).mT


def _forward(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """Return y (B, L, E) and the states (B, segments, N, E) that segments start from; a is (B, E, N) or (1, E, N)."""
    rate, y, starts = _rate(a), torch.empty_like(u), []
    work = _work(u, rate, segment, 2)
    state = u.new_zeros(u.shape[0], *rate.shape[2:])
    for part in _parts(u.shape[1], segment):
        starts.append(state)
        _, states = _states(u[:, part], delta[:, part], rate, b[:, part], state, work)
        y[:, part] = (c[:, part, None] @ states)[:, :, 0]
        state = states[:, -1].clone()
    return y, torch.stack(starts, 1)


def _backward(
    slope: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor, segment: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, a, b, c for that of y (B, L, E), segments from the last to the first."""
    to_u, to_delta, to_b, to_c = (torch.empty_like(tensor) for tensor in (u, delta, b, c))
    rate, rows = _rate(a), a.mT[:, None].contiguous()
    to_rows = torch.zeros_like(rows)
    work = _work(u, rate, segment, 3)
    from_later = torch.zeros_like(starts[:, 0])  # the gradient that the next segment gives to this one's last state
    for number, part in reversed(list(enumerate(_parts(u.shape[1], segment)))):
        step, x, start = delta[:, part], u[:, part], starts[:, number]
        decay, states = _states(x, step, rate, b[:, part], start, work)
        to_c[:, part] = (slope[:, part, None] @ states.mT)[:, :, 0]
        # The gradient of the states is the same recurrence run backwards in time.
        to_states = torch.mul(slope[:, part, None], c[:, part, :, None], out=work[2][:, : x.shape[1]])
        to_states[:, -1] += from_later
        _accumulate(decay, to_states, step, rate, backwards=True)
        from_later = decay[:, 0] * to_states[:, 0]
        to_values = (b[:, part, None] @ to_states)[:, :, 0]
        to_b[:, part] = ((step * x)[:, :, None] @ to_states.mT)[:, :, 0]
        to_u[:, part] = to_values * step
        to_exponent = decay.mul_(to_states)
        to_exponent[:, 1:] *= states[:, :-1]
        to_exponent[:, 0] *= start
        to_delta[:, part] = torch.mul(to_exponent, rows, out=to_states).sum(2) + to_values * x
        to_rows += to_exponent.mul_(step[:, :, None]).sum((0, 1) if len(rows) == 1 else 1, keepdim=True)
    return to_u, to_delta, to_rows[:, 0].mT.contiguous(), to_b, to_c


_scan = torch.library.custom_op("autoseg::selective_scan", _forward, mutates_args=())
_scan_backward = torch.library.custom_op("autoseg::selective_scan_backward", _backward, mutates_args=())


@_scan.register_fake
def _(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[0], -(-u.shape[1] // segment), *a.mT.shape[1:])


@_scan_backward.register_fake
def _(
    slope: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor, segment: int
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (u, delta, a, b, c))


@register_flop_formula(torch.ops.autoseg.selective_scan)
def _forward_operations(u: torch.Size, delta: torch.Size, a: torch.Size, *_: Any, **__: Any) -> int:
    return OPERATIONS * math.prod(u) * a[-1]


@register_flop_formula(torch.ops.autoseg.selective_scan_backward)
def _backward_operations(slope: torch.Size, u: torch.Size, delta: torch.Size, a: torch.Size, *_: Any, **__: Any) -> int:
    return BACKWARD_OPERATIONS * math.prod(u) * a[-1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.segment = inputs
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_scan_backward(slope, *ctx.saved_tensors, ctx.segment), None


_scan.register_autograd(_differentiate, setup_context=_keep)


def _parts(length: int, segment: int) -> list[slice]:
    return [slice(start, min(start + segment, length)) for start in range(0, length, segment)]


def _rate(a: Tensor) -> Tensor:
    """Return a as (B or 1, 1, N, E), for powers of two, which cost half of what those of e do."""
    return (a.mT[:, None] * math.log2(math.e)).contiguous()


def _work(u: Tensor, rate: Tensor, segment: int, count: int) -> list[Tensor]:
    """Return room for `count` tensors (B, S, N, E) that all segments share: fresh memory costs more than the sums."""
    return [u.new_empty(u.shape[0], min(segment, u.shape[1]), *rate.shape[2:]) for _ in range(count)]


def _states(
    u: Tensor, delta: Tensor, rate: Tensor, b: Tensor, start: Tensor, work: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return decay and states (B, S, N, E) of a segment that starts from `start` (B, N, E), written into `work`."""
    decay, value = (room[:, : u.shape[1]] for room in work[:2])
    torch.mul(delta[:, :, None], rate, out=decay).exp2_()
    torch.mul((delta * u)[:, :, None], b[..., None], out=value)
    value[:, 0].addcmul_(decay[:, 0], start)
    _accumulate(decay, value, delta, rate)
    return decay, value


def _accumulate(decay: Tensor, value: Tensor, delta: Tensor, rate: Tensor, *, backwards: bool = False) -> None:
    """Overwrite value (B, L, N, E) by h with h_t = decay_t h_{t-1} + value_t, h_{-1} = 0.

    backwards: h_t = decay_{t+1} h_{t+1} + value_t, h_L = 0. decay (B, L, N, E) is that of delta (B, L, E).
    """
    length = value.shape[1]
    blocks = length // BLOCK
    if blocks < 2 or value[:, 0].numel() >= WIDE:
        _one_after_the_other(decay.unbind(1), value.unbind(1), backwards)
        return
    whole = blocks * BLOCK
    if backwards and whole < length:
        _one_after_the_other(decay[:, whole - 1 :].unbind(1), value[:, whole - 1 :].unbind(1), backwards)
    decays = decay[:, :whole].unflatten(1, (blocks, BLOCK)).unbind(2)
    values = value[:, :whole].unflatten(1, (blocks, BLOCK)).unbind(2)
    steps = delta[:, :whole]
    # Every block from a zero state, of which only the end is kept, then the ends joined.
    if backwards:
        ends = values[-1].clone()
        for t in reversed(range(BLOCK - 1)):
            torch.addcmul(values[t], decays[t + 1], ends, out=ends)
        steps = nn.functional.pad(steps[:, 1:], (0, 0, 0, 1)).roll(BLOCK, 1)  # up to the first of the next block
    else:
        ends = values[0].clone()
        for t in range(1, BLOCK):
            torch.addcmul(values[t], decays[t], ends, out=ends)
    steps = steps.unflatten(1, (blocks, BLOCK)).sum(2)
    _accumulate((steps[:, :, None] * rate).exp2_(), ends, steps, rate, backwards=backwards)
    if backwards:
        values[-1][:, :-1].addcmul_(decays[0][:, 1:], ends[:, 1:])
    else:
        values[0][:, 1:].addcmul_(decays[0][:, 1:], ends[:, :-1])
    _one_after_the_other(decays, values, backwards)
    if not backwards and whole < length:
        _one_after_the_other(decay[:, whole - 1 :].unbind(1), value[:, whole - 1 :].unbind(1), backwards)


def _one_after_the_other(decays: Sequence[Tensor], values: Sequence[Tensor], backwards: bool) -> None:
    """Add to every position what it takes over from the one before, backwards from the one after."""
    if backwards:
        for t in reversed(range(len(values) - 1)):
            values[t].addcmul_(decays[t + 1], values[t + 1])
    else:
        for t in range(1, len(values)):
            values[t].addcmul_(decays[t], values[t - 1])


@cache
def _fused_kernel() -> Callable[..., Any] | None:
    """Return mamba-ssm's CUDA kernel, None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn
