"""nnU-Net's U-Net. Source: Isensee et al. 2021, Nature Methods 18, 203-211; layers of dynamic-network-architectures.

Taken from the plan: all of it.

Parameters in 3D with one channel, three outputs, six stages from 32 to 320 channels: published 31 196 399, here the
same.
"""

from __future__ import annotations

from autoseg.architectures.blocks.unet import UNet, layer_arguments
from autoseg.architectures.blocks.unet_sizing import PlainUNetSizing
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from autoseg.plans import NetworkSpec
from autoseg.plugins import register


@register.architecture("plain_unet", sizing="autoseg.architectures.blocks.unet_sizing:PlainUNetSizing")
class PlainUNet(PlainUNetSizing, UNet):
    """nnU-Net's plain U-Net, 2D and 3D: strided convolutions down, transposed convolutions up, instance norm."""

    @classmethod
    def build(cls, spec: NetworkSpec) -> nn.Module:
        """Return the wrapped network."""
        return PlainConvUNet(n_conv_per_stage=spec.blocks_encoder, **layer_arguments(spec))
