"""Fixed sinusoidal positions of a 2D or 3D grid, added to feature maps of any size.

Source: Vaswani et al. 2017, arXiv:1706.03762, with one group of channels per axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BASE = 10000.0


def sinusoidal_positions(channels: int, grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return positions (channels, *grid), float32.

    Every axis has c = 2 ceil(channels / (2 axes)) channels, in the order of the axes: first all sines, then all cosines
    of position x 10000^(-2j / c), j < c / 2. What exceeds `channels` is cut off at the end.
    """
    axes = len(grid)
    share = 2 * -(-channels // (2 * axes))
    frequencies = BASE ** (-2 * torch.arange(share // 2, device=device, dtype=torch.float32) / share)
    groups = []
    for axis, edge in enumerate(grid):
        angles = frequencies[:, None] * torch.arange(edge, device=device, dtype=torch.float32)  # (c / 2, edge)
        table = torch.cat([angles.sin(), angles.cos()])
        groups.append(table.reshape(share, *(edge if a == axis else 1 for a in range(axes))).expand(-1, *grid))
    return torch.cat(groups)[:channels]


def add_positions(x: Tensor) -> Tensor:
    """Return x (B, C, *S) plus the positions of its grid, in x's precision."""
    return x + sinusoidal_positions(x.shape[1], x.shape[2:], x.device).to(x.dtype)
