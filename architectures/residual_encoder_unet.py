"""nnU-Net's U-Net with a residual encoder. Source: Isensee et al. 2024, nnU-Net Revisited, arXiv:2404.09556.

Taken from the plan: all of it but the blocks of the encoder, 1, 3, 4 and then 6 per stage.

Parameters in 3D with one channel, three outputs, six stages from 32 to 320 channels: published 102 350 575, here the
same.
"""

from __future__ import annotations

from autoseg.architectures.blocks.unet import UNet, layer_arguments
from autoseg.architectures.blocks.unet_sizing import ResidualEncoderSizing
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.initialization.weight_init import init_last_bn_before_add_to_0
from torch import nn

from autoseg.plans import NetworkSpec
from autoseg.plugins import register


@register.architecture("residual_encoder_unet", sizing="autoseg.architectures.blocks.unet_sizing:ResidualEncoderSizing")
class ResidualEncoder(ResidualEncoderSizing, UNet):
    """nnU-Net's residual encoder U-Net, 2D and 3D: ResNet-D blocks down, one convolution per decoder stage."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        self.apply(init_last_bn_before_add_to_0)  # every residual block starts as its skip

    @classmethod
    def build(cls, spec: NetworkSpec) -> nn.Module:
        """Return the wrapped network."""
        return ResidualEncoderUNet(n_blocks_per_stage=spec.blocks_encoder, **layer_arguments(spec))
