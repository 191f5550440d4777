"""The two-layer perceptron of transformer blocks. Source: Vaswani et al. 2017, arXiv:1706.03762, with GELU."""

from __future__ import annotations

from torch import Tensor, nn


class Mlp(nn.Module):
    """x (..., C) -> (..., C): Linear, exact GELU, dropout, Linear, dropout."""

    def __init__(self, width: int, hidden: int, *, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron's output."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
