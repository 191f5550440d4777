"""The layers of torch by number of dimensions, so that a network is written once for 2D and 3D."""

from __future__ import annotations

from torch import nn


def conv_classes(dims: int) -> tuple[type[nn.Module], type[nn.Module], type[nn.Module]]:
    """Return convolution, transposed convolution and instance norm for 2 or 3 dimensions."""
    if dims == 2:
        return nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d
    return nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d
