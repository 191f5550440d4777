"""Focal modulation: a query per position times a gated sum of contexts of growing size, in place of attention.

Maps are channel-last here, (B, *S, C). Parameter names are FocalNet's.

Source: Yang et al. 2022, Focal Modulation Networks, arXiv:2203.11926; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from torch import Tensor, nn


class FocalModulation(nn.Module):
    """x (B, *S, C) -> (B, *S, C); one depth-wise convolution per entry of `kernels`, each on the one before's output.

    The gates are linear. The last one belongs to the mean over all positions of the last context.
    """

    def __init__(self, width: int, kernels: Sequence[Sequence[int]]):
        super().__init__()
        conv, _, _ = conv_classes(len(kernels[0]))
        self.split = (width, width, len(kernels) + 1)
        self.f = nn.Linear(width, sum(self.split))
        self.focal_layers = nn.ModuleList(
            nn.Sequential(
                conv(width, width, tuple(k), padding=tuple(edge // 2 for edge in k), groups=width, bias=False),
                nn.GELU(),
            )
            for k in kernels
        )
        self.h = conv(width, width, 1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the modulated map."""
        query, context, gates = (part.movedim(-1, 1) for part in self.f(x).split(self.split, -1))
        modulator = torch.zeros_like(context)
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            modulator = modulator + gates[:, level : level + 1] * context
        everywhere = nn.functional.gelu(context.flatten(2).mean(2)).reshape(*context.shape[:2], *[1] * (x.ndim - 2))
        modulator = modulator + gates[:, -1:] * everywhere
        return self.proj((query * self.h(modulator)).movedim(1, -1))


class FocalBlock(nn.Module):
    """x (B, *S, C) -> (B, *S, C): focal modulation and a perceptron, each normalised before and added."""

    def __init__(self, width: int, kernels: Sequence[Sequence[int]], *, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.modulation = FocalModulation(width, kernels)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the next block."""
        x = x + self.drop_path(self.modulation(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def focal_kernels(
    levels: int, window: int, factor: int, grid: Sequence[int], thin: Sequence[bool]
) -> list[tuple[int, ...]]:
    """Return the kernels window + factor x level, per axis no longer than the grid, and 1 along thin axes."""

    def edge(kernel: int, size: int, flat: bool) -> int:
        return 1 if flat else min(kernel, size - 1 + size % 2)

    return [
        tuple(max(1, edge(window + factor * level, size, flat)) for size, flat in zip(grid, thin, strict=True))
        for level in range(levels)
    ]
