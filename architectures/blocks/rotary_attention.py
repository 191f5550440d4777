"""Self-attention with rotary position embedding on a 2D or 3D grid of tokens.

Every axis owns an equal share of the head's channel pairs; a pair turns by position x frequency, so that the product
of a query and a key depends on the difference of their coordinates only.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864; the form of EVA-02, Fang et al. 2023, arXiv:2303.11331, with one
frequency band per axis as in Wald et al. 2025, Primus, arXiv:2503.01835.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BASE = 10000.0  # the longest wave is about 2 pi times this


def rotary_table(grid: Sequence[int], head_width: int, *, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return sine and cosine (N, R) for the N tokens of a grid, row-major; R <= head_width channels turn.

    R is 2 n x the number of axes with n = head_width // (2 x axes) bands. `offset` shifts all positions.
    """
    bands = head_width // (2 * len(grid))
    frequencies = BASE ** (-torch.arange(bands, dtype=torch.float64) / bands)
    axes = [torch.arange(edge, dtype=torch.float64) + offset for edge in grid]
    positions = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1)  # (N, axes)
    angles = (positions[..., None] * frequencies).flatten(1).repeat_interleave(2, 1)
    return angles.sin().float(), angles.cos().float()


def rotate(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Return x (..., N, D) with its first R channels turned, pair by pair; sine and cosine (N, R) or (..., N, R)."""
    turning, still = x[..., : sine.shape[-1]], x[..., sine.shape[-1] :]
    quarter = torch.stack([-turning[..., 1::2], turning[..., ::2]], -1).flatten(-2)
    return torch.cat([(turning * cosine + quarter * sine).to(x.dtype), still], -1)


class RotaryAttention(nn.Module):
    """Multi-head attention, no key bias, merged heads normalised: tokens (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
        """Return the attended tokens for a `rotary_table`."""
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = rotate(q, sine, cosine), rotate(k, sine, cosine)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(self.norm(mixed.transpose(1, 2).flatten(2)))
