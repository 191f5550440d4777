"""The block of the vision transformer under the names of published weights, and positions for other grids.

Source: Dosovitskiy et al. 2021, ViT, arXiv:2010.11929; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.self_attention import attend
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """tokens (B, N, C) -> (B, N, C): attention and perceptron, each normalised before and added.

    `attention_drop` acts on the attention weights, `drop` within and after the perceptron.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = True, attention_drop: float = 0.0,
        drop: float = 0.0, drop_path: float = 0.0, eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = ViTAttention(width, heads, qkv_bias=qkv_bias, drop=attention_drop)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the next block."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViTAttention(nn.Module):
    """Multi-head self-attention with dropout on its weights: tokens (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, drop: float = 0.0):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended tokens."""
        rate = self.drop if self.training else 0.0
        return self.proj(attend(*self.qkv(tokens).chunk(3, -1), self.heads, dropout=rate))


def fit_positions(table: Tensor, planned: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return a position table (1, N, C), trained for the tokens of a planned grid, for another grid.

    Tokens are row-major; the table is interpolated linearly, and is itself where the grids are the same.
    """
    if tuple(grid) == tuple(planned):
        return table
    mode = ("bilinear", "trilinear")[len(grid) - 2]
    return nn.functional.interpolate(table.mT.unflatten(2, tuple(planned)), size=tuple(grid), mode=mode).flatten(2).mT
