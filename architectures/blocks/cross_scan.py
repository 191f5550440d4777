"""Orders in which a map is read as sequences: along every axis, forwards and backwards.

In 2D rows, then columns, then both reversed; in 3D the same with three orders, so that every axis runs fastest once.

Source: Liu et al. 2024, VMamba, arXiv:2401.10166 (2D); the 3D form is its generalisation; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scan_count(dims: int) -> int:
    """Return how many sequences there are."""
    return 2 * dims


def cross_scan(x: Tensor) -> Tensor:
    """Return (B, K, L, E) for a map x (B, *S, E): L positions in K orders, the later half of them reversed."""
    dims = x.ndim - 2
    ways = torch.stack([x.permute(0, *axes, -1).flatten(1, -2) for axes in _orders(dims)], 1)
    return torch.cat([ways, ways.flip(2)], 1)


def cross_merge(y: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sum (B, *S, E) of all sequences y (B, K, L, E), each put back to its place in the map."""
    dims = len(sizes)
    ways = y[:, :dims] + y[:, dims:].flip(2)
    total = ways[:, 0].unflatten(1, tuple(sizes))
    for way, axes in list(zip(ways.unbind(1), _orders(dims), strict=True))[1:]:
        laid_out = way.unflatten(1, [sizes[axis - 1] for axis in axes])
        back = [1 + axes.index(axis) for axis in range(1, dims + 1)]
        total = total + laid_out.permute(0, *back, -1)
    return total


def _orders(dims: int) -> list[tuple[int, ...]]:
    """Return the axes of (B, *S, E), slowest first, of each order."""
    axes = tuple(range(1, dims + 1))
    return [axes[turn:] + axes[:turn] for turn in range(dims)]
