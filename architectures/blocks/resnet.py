"""The residual networks of image classification as encoders, 2D and 3D, with strides and kernels of a plan.

Parameter names are those of the widespread weight files: conv1, bn1, layer1, layer2, ...

Source: He et al. 2016, Deep Residual Learning, arXiv:1512.03385; the stride is in the bottleneck's 3-convolution, as in
later code; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from autoseg.architectures.blocks.strided_projection import strided_projection
from torch import Tensor, nn

STEM_KERNEL = 7


class BasicBlock(nn.Module):
    """Two convolutions, the first with the stride, added to x or its projection: (B, a, *S) -> (B, b, *S / stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, before: int, width: int, stride: Sequence[int], kernel: Sequence[int], norm: str):
        super().__init__()
        dims, kernel = len(stride), tuple(kernel)
        conv, _, _ = conv_classes(dims)
        padding = tuple(edge // 2 for edge in kernel)
        self.conv1 = conv(before, width, kernel, tuple(stride), padding, bias=False)
        self.bn1 = make_norm(dims, norm, width)
        self.conv2 = conv(width, width, kernel, 1, padding, bias=False)
        self.bn2 = make_norm(dims, norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(before, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1-, strided 3- and 1-convolution to four times the width, added to x or its projection."""

    expansion: ClassVar[int] = 4

    def __init__(self, before: int, width: int, stride: Sequence[int], kernel: Sequence[int], norm: str):
        super().__init__()
        dims, kernel, after = len(stride), tuple(kernel), self.expansion * width
        conv, _, _ = conv_classes(dims)
        self.conv1 = conv(before, width, 1, bias=False)
        self.bn1 = make_norm(dims, norm, width)
        self.conv2 = conv(width, width, kernel, tuple(stride), tuple(edge // 2 for edge in kernel), bias=False)
        self.bn2 = make_norm(dims, norm, width)
        self.conv3 = conv(width, after, 1, bias=False)
        self.bn3 = make_norm(dims, norm, after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(before, after, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """x (B, C, *S) -> the maps of all layers, high to low resolution.

    `strides` and `kernels` have one entry for the stem and one per layer, `widths` and `depths` one per layer. The
    stem has kernel 7 along axes that it strides, else the one given. `pool`: stride of a max-pooling by 3 after it.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        *,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        norm: str = "batch",
        pool: Sequence[int] | None = None,
    ):
        super().__init__()
        dims = len(strides[0])
        conv, _, _ = conv_classes(dims)
        kernel = tuple(STEM_KERNEL if s > 1 else edge for s, edge in zip(strides[0], kernels[0], strict=True))
        padding = tuple(edge // 2 for edge in kernel)
        self.conv1 = conv(in_channels, widths[0], kernel, tuple(strides[0]), padding, bias=False)
        self.bn1 = make_norm(dims, norm, widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        if pool is not None and max(pool) > 1:
            edges = tuple(3 if step > 1 else 1 for step in pool)
            layer = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
            self.maxpool = layer(edges, tuple(pool), tuple(edge // 2 for edge in edges))
        self.layers = len(depths)
        before, ones = widths[0], (1,) * dims
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            units = []
            for unit in range(depth):
                units.append(block(before, width, strides[number] if unit == 0 else ones, kernels[number], norm))
                before = width * block.expansion
            self.add_module(f"layer{number}", nn.Sequential(*units))
        self.apply(_draw_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps."""
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(x)))), []
        for number in range(1, self.layers + 1):
            x = getattr(self, f"layer{number}")(x)
            maps.append(x)
        return maps


def _projection(before: int, after: int, stride: Sequence[int], norm: str) -> nn.Module:
    if before == after and max(stride) == 1:
        return nn.Identity()
    projection = strided_projection(before, after, tuple(stride), bias=False)
    return nn.Sequential(projection, make_norm(len(stride), norm, after))


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
