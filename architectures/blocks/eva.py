"""The transformer block of EVA-02: rotary attention, SwiGLU, LayerScale, stochastic depth.

Source: Fang et al. 2023, EVA-02, arXiv:2303.11331, as in Wald et al. 2025, Primus, arXiv:2503.01835; written from the
description.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.rotary_attention import RotaryAttention
from torch import Tensor, nn


class EvaBlock(nn.Module):
    """tokens (B, N, C) -> (B, N, C): attention and SwiGLU, each normalised before, scaled and added."""

    def __init__(self, width: int, heads: int, hidden: int, *, drop_path: float = 0.0, scale: float = 0.1):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RotaryAttention(width, heads)
        self.scale_attention = nn.Parameter(torch.full((width,), scale))
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = SwiGLU(width, hidden)
        self.scale_mlp = nn.Parameter(torch.full((width,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
        """Return the tokens of the next block."""
        attended = self.attention(self.norm_attention(tokens), sine, cosine)
        tokens = tokens + self.drop_path(self.scale_attention * attended)
        return tokens + self.drop_path(self.scale_mlp * self.mlp(self.norm_mlp(tokens)))


class SwiGLU(nn.Module):
    """A gated two-layer perceptron whose hidden layer is normalised: (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.value = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron's output."""
        return self.out(self.norm(nn.functional.silu(self.gate(x)) * self.value(x)))


class DropPath(nn.Module):
    """While training, drop a residual branch of a whole sample with probability `rate`, else divide it by 1 - rate.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...) with some samples zero."""
        if not self.training or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = torch.rand(shape, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)
