"""Channel attention: every channel of a map becomes a mixture of those that differ from it.

Source: Fu et al. 2019, Dual Attention Network, arXiv:1809.02983; written from the description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """gamma (A X) + x for x (B, C, *S), X its C flattened channels, A = softmax of rowmax(X X^T) - X X^T; gamma is 0.

    It has no other parameters: gamma is a learned number. The products are summed in single precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def weights(self, x: Tensor) -> Tensor:
        """Return A (B, C, C); rows sum to 1."""
        with torch.autocast(x.device.type, enabled=False):
            channels = x.flatten(2).float()
            energy = channels @ channels.mT
            return (energy.amax(-1, keepdim=True) - energy).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        mixed = (self.weights(x).to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        return self.gamma * mixed + x
