"""The blocks of SegNeXt's encoder MSCAN: convolutions with stride, and gated attention by strip convolutions.

Source: Guo et al. 2022, arXiv:2209.08575. 3D is an extension: strips along every axis that a network names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.depthwise_conv import depthwise
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.normalization import make_norm
from torch import Tensor, nn

STRIPS = (7, 11, 21)  # lengths
SCALE = 0.01  # of residual branches at the start


def stem(before: int, after: int, stride: Sequence[int], norm: str) -> nn.Sequential:
    """Return two convolutions that share the stride: the second takes up to 2 per axis, the first the rest."""
    second = tuple(min(2, step) for step in stride)
    first = tuple(step // last for step, last in zip(stride, second, strict=True))
    return nn.Sequential(
        *downsample(before, after // 2, first, norm), nn.GELU(), *downsample(after // 2, after, second, norm)
    )


def downsample(before: int, after: int, stride: Sequence[int], norm: str) -> nn.Sequential:
    """Return a 3-convolution with stride, and its norm."""
    conv, _, _ = conv_classes(len(stride))
    return nn.Sequential(conv(before, after, 3, tuple(stride), padding=1), make_norm(len(stride), norm, after))


def strip(dims: int, axis: int, length: int) -> tuple[int, ...]:
    """Return the kernel of a strip along an axis."""
    return tuple(length if other == axis else 1 for other in range(dims))


class Block(nn.Module):
    """x (B, C, *S) plus its scaled convolutional attention, plus its scaled perceptron; each normalised before."""

    def __init__(self, dims: int, width: int, ratio: int, axes: Sequence[int], norm: str, drop_path: float):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.norm1, self.norm2 = make_norm(dims, norm, width), make_norm(dims, norm, width)
        self.attention = SpatialAttention(dims, width, axes)
        inner = ratio * width
        self.mlp = nn.Sequential(conv(width, inner, 1), depthwise(inner, (3,) * dims), nn.GELU(), conv(inner, width, 1))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width, *[1] * dims), SCALE)) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        x = x + self.drop_path(self.scale1 * self.attention(self.norm1(x)))
        return x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))


class SpatialAttention(nn.Module):
    """u (B, C, *S) plus a gated form of it: weights from convolutions of 5 and of cascaded strips, three lengths."""

    def __init__(self, dims: int, width: int, axes: Sequence[int]):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.enter = nn.Sequential(conv(width, width, 1), nn.GELU())
        self.near = depthwise(width, (5,) * dims)
        self.strips = nn.ModuleList(
            nn.Sequential(*(depthwise(width, strip(dims, axis, length)) for axis in reversed(axes)))
            for length in STRIPS
        )
        self.mix = conv(width, width, 1)
        self.leave = conv(width, width, 1)

    def forward(self, u: Tensor) -> Tensor:
        """Return the attended map."""
        z = self.enter(u)
        near = self.near(z)
        total = near
        for cascade in self.strips:
            total = total + cascade(near)
        return u + self.leave(self.mix(total) * z)
