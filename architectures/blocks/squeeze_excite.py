"""Squeeze-and-excitation: the means of all channels decide how strong each channel is.

Source: Hu et al. 2018, Squeeze-and-Excitation Networks, arXiv:1709.01507; without biases, as in later code.
"""

from __future__ import annotations

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Global mean, Linear to width / reduction, ReLU, Linear, sigmoid; times x (B, width, *S)."""

    def __init__(self, width: int, *, reduction: int = 16):
        super().__init__()
        inner = max(1, width // reduction)
        self.reduce = nn.Linear(width, inner, bias=False)
        self.expand = nn.Linear(inner, width, bias=False)

    def scale(self, x: Tensor) -> Tensor:
        """Return the factors (B, width) in (0, 1)."""
        return self.expand(self.reduce(x.flatten(2).mean(2)).relu()).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the re-weighted map."""
        scale = self.scale(x)
        return x * scale.reshape(*scale.shape, *[1] * (x.ndim - 2))
