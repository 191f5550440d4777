"""Layers by number of dimensions."""

from autoseg.architectures.blocks.dimensions import conv_classes
from torch import nn


def test_layers_of_two_and_three_dimensions():
    assert conv_classes(2) == (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d)
    assert conv_classes(3) == (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)
