"""The block of the vision transformer under the names of published weights.

Source: Dosovitskiy et al. 2021, ViT, arXiv:2010.11929; written from the description.
"""

from __future__ import annotations

from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.self_attention import attend
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """tokens (B, N, C) -> (B, N, C): attention and perceptron, each normalised before and added."""

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = True, dropout: float = 0.0,
        drop_path: float = 0.0, eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = ViTAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the next block."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViTAttention(nn.Module):
    """Multi-head self-attention, dropout on its weights and on its output: tokens (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended tokens."""
        rate = self.drop.p if self.training else 0.0
        return self.drop(self.proj(attend(*self.qkv(tokens).chunk(3, -1), self.heads, dropout=rate)))
