"""Attention of one summary token to all tokens of a sequence.

Source: Chen et al. 2021, CrossViT, arXiv:2103.14899; written from the description.
"""

from __future__ import annotations

from autoseg.architectures.blocks.self_attention import attend
from torch import Tensor, nn


class ClassAttention(nn.Module):
    """tokens (B, 1 + N, C) -> (B, 1, C): the first token asks, all tokens are keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the first token attends to, without a residual."""
        mixed = attend(self.query(tokens[:, :1]), self.key(tokens), self.value(tokens), self.heads)
        return self.out(mixed)
