"""The gated skip of U-Transformer: the coarse map decides, looking everywhere, what of the skip is kept.

Source: Petit et al. 2021, U-Net Transformer, arXiv:2103.06104; written from the description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from autoseg.architectures.blocks.self_attention import attend
from autoseg.architectures.blocks.sinusoidal_positions import add_positions
from torch import Tensor, nn


class GatedCrossAttention(nn.Module):
    """coarse y (B, a, *S / stride), skip (B, b, *S) -> (B, 2 b, *S): the gated skip and the up-sampled y.

    Queries and keys come from y, values from the skip. The gate, in (0, 1), multiplies the skip after its positions
    were added. Grids of more than `max_tokens` are averaged before the attention, see `pooling`.
    """

    def __init__(
        self,
        coarse: int,
        fine: int,
        stride: Sequence[int],
        kernel: Sequence[int],
        heads: int,
        *,
        norm: str = "batch",
        max_tokens: int = 4096,
    ):
        super().__init__()
        dims = len(stride)
        conv, _, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
        self.heads, self.max_tokens = heads, max_tokens
        self.mode = ("bilinear", "trilinear")[dims - 2]
        self.values = nn.Sequential(
            pool(tuple(stride)), conv(fine, fine, 1), make_norm(dims, norm, fine), nn.ReLU(inplace=True)
        )
        self.queries = nn.Sequential(conv(coarse, fine, 1), make_norm(dims, norm, fine), nn.ReLU(inplace=True))
        self.query, self.key, self.value = (nn.Linear(fine, fine, bias=False) for _ in range(3))
        self.to_gate = nn.Sequential(conv(fine, fine, 1), make_norm(dims, norm, fine), nn.Sigmoid())
        self.up = nn.Sequential(
            conv(coarse, coarse, tuple(kernel), padding=tuple(edge // 2 for edge in kernel)),
            conv(coarse, fine, 1),
            make_norm(dims, norm, fine),
            nn.ReLU(inplace=True),
        )

    def forward(self, y: Tensor, skip: Tensor) -> Tensor:
        """Return the gated skip and y at its size, as one map."""
        y, skip = add_positions(y), add_positions(skip)
        gate = self._enlarge(self.gate(y, skip), skip)
        return torch.cat([gate * skip, self.up(self._enlarge(y, skip))], 1)

    def gate(self, y: Tensor, skip: Tensor) -> Tensor:
        """Return the gate (B, b, *grid), at the resolution of the attention, for maps that have their positions."""
        source, values = self.queries(y), self.values(skip)
        factors = pooling(source.shape[2:], self.max_tokens)
        if max(factors) > 1:
            average = (nn.functional.avg_pool2d, nn.functional.avg_pool3d)[len(factors) - 2]
            source, values = (average(tensor, factors, ceil_mode=True) for tensor in (source, values))
        grid = source.shape[2:]
        source, values = source.flatten(2).mT, values.flatten(2).mT
        mixed = attend(self.query(source), self.key(source), self.value(values), self.heads)
        return self.to_gate(mixed.mT.unflatten(2, grid))

    def _enlarge(self, x: Tensor, skip: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=skip.shape[2:], mode=self.mode, align_corners=True)


def pooling(grid: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """Return the smallest factors per axis that leave at most `max_tokens`; the longest axis is shortened first."""
    factors = [1] * len(grid)

    def pooled() -> list[int]:
        return [-(-edge // factor) for edge, factor in zip(grid, factors, strict=True)]

    while math.prod(pooled()) > max_tokens:
        factors[pooled().index(max(pooled()))] += 1
    return tuple(factors)
