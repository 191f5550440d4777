"""Gaussian noise from a counter-based integer hash: the same field on every device and for any number of workers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -1640531527  # 0x9E3779B9 as a signed 32-bit number
_MIX_1, _MIX_2 = 0x7FEB352D, -2073254261  # 0x846CA68B


def normal_field(keys: Tensor, count: int) -> Tensor:
    """Return (n, count) standard normal float32 numbers, row i a function of the int32 key i and the position alone.

    Two hashed counters give, by Box and Muller, two normal numbers. Source of the hash: Wellons 2018 ("lowbias32",
    public domain), keyed once more between its two rounds.
    """
    half = (count + 1) // 2
    bits = torch.arange(2 * half, dtype=torch.int32, device=keys.device).mul_(_GOLDEN)
    keys = keys.view(-1, 1)
    bits = bits.view(1, -1) ^ keys
    bits.bitwise_xor_(_shifted(bits, 16)).mul_(_MIX_1)
    bits.add_(keys)
    bits.bitwise_xor_(_shifted(bits, 15)).mul_(_MIX_2)
    bits.bitwise_xor_(_shifted(bits, 16))
    uniform = bits.to(torch.float32)  # -2^31 .. 2^31
    radius = uniform[:, :half].mul_(2.0**-32).add_(0.5).clamp_min_(2.0**-26).log_().mul_(-2).sqrt_()
    angle = uniform[:, half:].mul_(math.pi * 2.0**-31)
    field = torch.empty_like(uniform)
    torch.cos(angle, out=field[:, :half]).mul_(radius)
    torch.sin(angle, out=field[:, half:]).mul_(radius)
    return field[:, :count]


def add_noise_(rows: Tensor, std: Tensor, key_high: Tensor, key_low: Tensor) -> None:
    """Add noise of the given standard deviation to rows (n, V), in place.

    The keys come as two 16-bit halves, since a float32 column does not hold 32 bits.
    """
    keys = key_high.to(torch.int32) * 65536 + key_low.to(torch.int32)
    rows.add_(normal_field(keys, rows.shape[1]).mul_(std))


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift int32 to the right, filling with zeros: torch fills with the sign."""
    return (bits >> places).bitwise_and_((1 << (32 - places)) - 1)
