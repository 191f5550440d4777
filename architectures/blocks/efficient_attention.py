"""Attention at a cost linear in the number of tokens: keys and values meet first, in a channel by channel context.

Source: Shen et al. 2021, Efficient Attention, arXiv:1812.01243; written from the description.
"""

from __future__ import annotations

from torch import Tensor, nn


class EfficientAttention(nn.Module):
    """tokens (B, N, C) -> (B, N, C), one head; softmax of keys over tokens, of queries over channels."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended tokens, without a residual."""
        context = self.key(tokens).softmax(1).mT @ self.value(tokens)  # (B, C, C)
        return self.out(self.query(tokens).softmax(2) @ context)
