"""The residual blocks of UNETR's convolutional parts. Source: Hatamizadeh et al. 2022, UNETR, arXiv:2103.10504."""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3-convolutions with instance norm and a skip: x (B, a, *S) -> (B, b, *S); norms have no parameters."""

    def __init__(self, dims: int, before: int, after: int):
        super().__init__()
        conv, _, norm = conv_classes(dims)
        self.convs = nn.Sequential(
            conv(before, after, 3, padding=1, bias=False),
            norm(after),
            nn.LeakyReLU(0.01, inplace=True),
            conv(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        same = before == after
        self.skip = nn.Identity() if same else nn.Sequential(conv(before, after, 1, bias=False), norm(after))
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.act(self.convs(x) + self.skip(x))


class ResidualUpBlock(nn.Module):
    """Transposed convolution by the stride, concatenation with the skip (B, after, *S), residual block."""

    def __init__(self, dims: int, before: int, after: int, stride: tuple[int, ...]):
        super().__init__()
        _, transposed, _ = conv_classes(dims)
        self.up = transposed(before, after, stride, stride, bias=False)
        self.block = ResidualBlock(dims, 2 * after, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, after, *S) for x (B, before, *S / stride)."""
        return self.block(torch.cat([self.up(x), skip], 1))
