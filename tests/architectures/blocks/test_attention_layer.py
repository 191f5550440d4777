"""The convolutions around an attention."""

import torch
from autoseg.architectures.blocks.attention_layer import attention_layer, conv_unit
from autoseg.architectures.blocks.channel_attention import ChannelAttention
from torch import nn


def test_order_and_sizes():
    layer = attention_layer(3, 8, 4, ChannelAttention(), "batch")
    kinds = [nn.Conv3d, nn.BatchNorm3d, nn.PReLU, ChannelAttention, nn.Conv3d, nn.BatchNorm3d, nn.PReLU]
    assert [type(part) for part in layer] == kinds
    assert layer(torch.zeros(2, 8, 3, 4, 5)).shape == (2, 4, 3, 4, 5)
    assert [part.num_parameters for part in layer if isinstance(part, nn.PReLU)] == [1, 1]
    assert sum(p.numel() for p in layer.parameters()) == (27 * 32 + 4) + 8 + 1 + 1 + (27 * 16 + 4) + 8 + 1


def test_a_unit_without_neighbours():
    conv, norm, _ = conv_unit(2, 3, 5, 1, "instance")
    assert (conv.kernel_size, conv.padding, conv.bias.numel()) == ((1, 1), (0, 0), 5)
    assert isinstance(norm, nn.InstanceNorm2d)
    assert norm.affine
