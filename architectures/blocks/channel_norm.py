"""Layer norm for maps. Source: Ba et al. 2016, arXiv:1607.06450, over channels as ConvNeXt and Primus use it."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every voxel of x (B, C, *S)."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
