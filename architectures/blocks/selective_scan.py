"""The selective scan of Mamba: a state-space recurrence whose step size and projections depend on the input.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t . h_t + D u_t, with h_{-1} = 0, one state vector per channel.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; the published kernel is in mamba-ssm (Apache-2.0), which is used where
it is installed and the tensors are on a CUDA device. The scan here is plain PyTorch: blocks of `BLOCK` positions are
scanned at the same time, then the blocks' ends by the same rule, then the results are joined. Its cost is linear in the
length, its number of operations logarithmic. Long sequences go segment by segment, and the states of a segment are
computed again in the backward pass, so memory holds the states of one segment only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    length = u.shape[1]
    segment = max(BLOCK, elements // a.numel())
    state = u.new_zeros(u.shape[0], *a.shape)
    outputs = []
    for start in range(0, length, segment):
        part = [tensor[:, start : start + segment] for tensor in (u, delta, b, c)]
        if torch.is_grad_enabled() and length > segment:
            y, state = checkpoint(_scan_segment, *part, a, state, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _scan_segment(*part, a, state)
        outputs.append(y)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]


def scan_by_kernel(kernel: Callable[..., Any], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return y without the D term by mamba-ssm's kernel, which wants the length last and contiguous."""
    last = [tensor.mT.contiguous() for tensor in (u, delta)], [tensor.mT.contiguous() for tensor in (b, c)]
    return kernel(*last[0], a.contiguous(), *last[1]).mT


def linear_recurrence(decay: Tensor, value: Tensor) -> Tensor:
    """Return h (B, L, *) with h_t = decay_t h_{t-1} + value_t and h_{-1} = 0; decay and value (B, L, *)."""
    return _LinearRecurrence.apply(decay, value)


class _LinearRecurrence(torch.autograd.Function):
    """The recurrence; its gradient is the same recurrence run backwards in time."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor) -> Tensor:
        states = _scan_in_place(decay.clone(), value.clone())
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        later = torch.cat(
            [decay[:, 1:], torch.zeros_like(decay[:, :1])], 1
        )  # the decay that leads to the next position
        to_value = linear_recurrence(later.flip(1), gradient.flip(1)).flip(1)
        earlier = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return to_value * earlier, to_value


def _scan_in_place(decay: Tensor, value: Tensor) -> Tensor:
    """Return the states; both tensors (B, L, *) are overwritten."""
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


def _scan_segment(u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (B, S, E) and the last state (B, E, N) of a segment that starts from `state`."""
    decay = torch.exp(delta[..., None] * a)  # (B, S, E, N)
    value = (delta * u)[..., None] * b[:, :, None]
    first = torch.addcmul(value[:, :1], decay[:, :1], state[:, None])
    states = linear_recurrence(decay, torch.cat([first, value[:, 1:]], 1))
    return (states @ c[..., None])[..., 0], states[:, -1]


@cache
def _fused_kernel() -> Callable[..., Any] | None:
    """Return mamba-ssm's CUDA kernel, None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn
