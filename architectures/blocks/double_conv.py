"""The unit of U-Nets: twice convolution, norm, ReLU.

Source: Ronneberger et al. 2015, U-Net, arXiv:1505.04597, with a norm before every ReLU as in later networks.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from torch import nn


def double_conv(
    before: int, after: int, kernel: Sequence[int], norm: str, *, bias: bool = True, pool: Sequence[int] = (1,)
) -> nn.Sequential:
    """Return max-pooling by `pool`, where that is more than 1, then twice convolution, norm, ReLU.

    (B, before, *S) -> (B, after, *S / pool).
    """
    dims, kernel = len(kernel), tuple(kernel)
    conv, _, _ = conv_classes(dims)
    padding = tuple(edge // 2 for edge in kernel)
    layers: list[nn.Module] = []
    if max(pool) > 1:
        layers.append((nn.MaxPool2d, nn.MaxPool3d)[dims - 2](tuple(pool)))
    for channels in (before, after):
        layers.append(conv(channels, after, kernel, padding=padding, bias=bias))
        layers += [make_norm(dims, norm, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
