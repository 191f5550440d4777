"""Additive attention gates: a coarser map decides, position by position, how much of a skip passes.

Source: Oktay et al. 2018, Attention U-Net, arXiv:1804.03999, in two published forms: `AttentionGate` joins both maps at
the skip's resolution, `CoarseAttentionGate` at the coarser one. Written from descriptions, no code taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from torch import Tensor, nn

LINEAR = {2: "bilinear", 3: "trilinear"}


class AttentionGate(nn.Module):
    """sigmoid(N(conv(ReLU(N(conv x) + resized N(conv g))))) * x, with 1x1 convolutions to `inner` channels.

    x (B, width, *S), g (B, guide, *G) of any size -> (B, width, *S).
    """

    def __init__(self, dims: int, width: int, guide: int, inner: int, *, norm: str = "batch"):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.from_skip = nn.Sequential(conv(width, inner, 1), make_norm(dims, norm, inner))
        self.from_guide = nn.Sequential(conv(guide, inner, 1), make_norm(dims, norm, inner))
        self.score = nn.Sequential(conv(inner, 1, 1), make_norm(dims, norm, 1))

    def weights(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return the shares (B, 1, *S) in (0, 1)."""
        skip, guide = self.from_skip(x), self.from_guide(guide)
        if guide.shape[2:] != skip.shape[2:]:
            guide = nn.functional.interpolate(guide, size=skip.shape[2:], mode=LINEAR[x.ndim - 2])
        return self.score(torch.relu(skip + guide)).sigmoid()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return the gated map."""
        return self.weights(x, guide) * x


class CoarseAttentionGate(nn.Module):
    """The gate of the widespread Keras Attention U-Nets: both maps meet on the coarse grid, a 1x1 convolution follows.

    x (B, width, *S), g (B, width, *S / stride) -> (B, width, *S). The skip comes down by a convolution with kernel =
    stride, the guide passes a 1x1 and a transposed convolution of stride 1 and `kernel`; shares go up by copying.
    """

    def __init__(
        self, dims: int, width: int, stride: Sequence[int], *, kernel: Sequence[int] | None = None, norm: str = "batch"
    ):
        super().__init__()
        conv, transposed, _ = conv_classes(dims)
        stride, kernel = tuple(stride), tuple(kernel or (3,) * dims)
        self.from_skip = conv(width, width, stride, stride)
        self.from_guide = nn.Sequential(
            conv(width, width, 1), transposed(width, width, kernel, padding=tuple(edge // 2 for edge in kernel))
        )
        self.score = conv(width, 1, 1)
        self.out = nn.Sequential(conv(width, width, 1), make_norm(dims, norm, width))

    def weights(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return the shares (B, 1, *S / stride) in (0, 1)."""
        return self.score(torch.relu(self.from_skip(x) + self.from_guide(guide))).sigmoid()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Return the gated map."""
        share = nn.functional.interpolate(self.weights(x, guide), size=x.shape[2:], mode="nearest")
        return self.out(share * x)
