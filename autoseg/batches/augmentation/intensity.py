"""Brightness, contrast and gamma: in-place operations on rows (n, V) with one parameter (n, 1) per row."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-7


def scale_brightness_(rows: Tensor, factor: Tensor) -> None:
    """Multiply by the factor."""
    rows.mul_(factor)


def scale_contrast_(rows: Tensor, factor: Tensor) -> None:
    """Stretch about the mean and clip to the minimum and maximum found before."""
    lowest, highest = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    mean = rows.mean(1, keepdim=True)
    rows.mul_(factor).add_(mean * (1 - factor))
    torch.maximum(rows, lowest, out=rows)
    torch.minimum(rows, highest, out=rows)


def gamma_(rows: Tensor, gamma: Tensor) -> None:
    """Raise the intensities, scaled to 0..1, to the power gamma, then restore mean and standard deviation."""
    _gamma(rows, gamma, start=rows.amin(1, keepdim=True), end=rows.amax(1, keepdim=True))


def inverted_gamma_(rows: Tensor, gamma: Tensor) -> None:
    """Do the same on the negative image: the scale runs from the maximum down to the minimum."""
    _gamma(rows, gamma, start=rows.amax(1, keepdim=True), end=rows.amin(1, keepdim=True))


def _gamma(rows: Tensor, gamma: Tensor, *, start: Tensor, end: Tensor) -> None:
    width = end - start  # negative for the inverted image
    width = torch.where(width.abs() < _SMALLEST, _SMALLEST, width)
    rows.sub_(start).div_(width)
    mean, std = _statistics(rows)
    rows.log_().mul_(gamma).exp_()  # twice as fast as pow; log(0) = -inf gives 0
    new_mean, new_std = _statistics(rows)
    ratio = std * width.abs() / (new_std * width.abs()).clamp_min(_SMALLEST)
    slope = width * ratio
    rows.mul_(slope).add_(start + width * mean - slope * new_mean)


def _statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and (n - 1) standard deviation of values in 0..1, each (n, 1)."""
    count = rows.shape[1]
    mean = rows.mean(1, keepdim=True)
    squares = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square()
    variance = (squares - count * mean.square()) / max(count - 1, 1)
    return mean, variance.clamp_min(0).sqrt()
