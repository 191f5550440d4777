"""Self-attention whose keys and values come from a map reduced by a strided convolution.

Maps are channel-last here, (B, *S, C).

Source: Wang et al. 2021, Pyramid Vision Transformer, arXiv:2102.12122; written from the description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.patch_merging import pad_to_multiple
from autoseg.architectures.blocks.self_attention import attend
from torch import Tensor, nn


class ReducedAttention(nn.Module):
    """x (B, *S, C) -> (B, *S, C); a convolution of kernel and stride `reduction` and a norm precede keys and values.

    Maps that the reduction does not divide are zero-padded at the end for it.
    """

    def __init__(self, width: int, heads: int, reduction: Sequence[int]):
        super().__init__()
        self.heads, self.reduction = heads, tuple(reduction)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        if max(self.reduction) > 1:
            conv, _, _ = conv_classes(len(self.reduction))
            self.reduce = conv(width, width, self.reduction, self.reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, without a residual."""
        y = x
        if max(self.reduction) > 1:
            y = pad_to_multiple(x, self.reduction).movedim(-1, 1)
            y = self.norm(self.reduce(y).movedim(1, -1))
        key, value = self.key_value(y.flatten(1, -2)).chunk(2, -1)
        return self.out(attend(self.query(x.flatten(1, -2)), key, value, self.heads)).view_as(x)


def reduction_for(grid: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the least powers of two per axis that leave at most `most` tokens; the longest axis is halved first."""
    factors = [1] * len(grid)

    def reduced() -> list[int]:
        return [-(-edge // factor) for edge, factor in zip(grid, factors, strict=True)]

    while math.prod(reduced()) > max(1, most):
        factors[reduced().index(max(reduced()))] *= 2
    return tuple(factors)
