"""Gaussian blur and simulated low resolution of single channels, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_kernel(sigma: float) -> list[float]:
    """Return the half [k0, k1, ...] of a normalised kernel of odd length nearest to 6 sigma + 0.5."""
    radius = int(3 * sigma + 0.25)
    values = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = values[0] + 2 * sum(values[1:])
    return [value / total for value in values]


def blur_(volume: Tensor, sigmas: Sequence[float]) -> None:
    """Blur a volume (*S) along each axis with its own sigma (voxels), mirrored at the edges."""
    result = volume
    for axis, sigma in enumerate(sigmas):
        result = _blur_axis(result, gaussian_kernel(sigma), axis)
    volume.copy_(result)


def low_resolution_(volume: Tensor, factor: float, *, keep_first: bool) -> None:
    """Shrink a volume (*S) by nearest neighbour to round(size * factor) and enlarge it linearly again.

    With `keep_first` the first axis, that of thick slices, keeps its size.
    """
    size = tuple(volume.shape)
    factors = [1.0 if keep_first and axis == 0 else factor for axis in range(len(size))]
    small = [max(1, round(length * each)) for length, each in zip(size, factors, strict=True)]
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    shrunk = functional.interpolate(volume[None, None], small, mode="nearest-exact")
    volume.copy_(functional.interpolate(shrunk, size, mode=mode, align_corners=False)[0, 0])


def _blur_axis(volume: Tensor, kernel: list[float], axis: int) -> Tensor:
    """Convolve along one axis as a sum of shifted copies."""
    length, radius = volume.shape[axis], len(kernel) - 1
    positions = torch.arange(-radius, length + radius, device=volume.device)
    if length > 1:  # reflect: -1 -> 1, length -> length - 2
        period = 2 * (length - 1)
        positions = (positions % period).sub_(length - 1).abs_().neg_().add_(length - 1)
    else:
        positions = positions.zero_()
    padded = volume.index_select(axis, positions)
    result = padded.narrow(axis, radius, length) * kernel[0]
    for offset, weight in enumerate(kernel[1:], start=1):
        result.add_(padded.narrow(axis, radius - offset, length), alpha=weight)
        result.add_(padded.narrow(axis, radius + offset, length), alpha=weight)
    return result
