"""What stands around an attention in dual attention networks: convolutions with norm and PReLU before and after it.

Source: Fu et al. 2019, Dual Attention Network, arXiv:1809.02983, with PReLU as later networks have it; written from
descriptions.
"""

from __future__ import annotations

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from torch import nn


def conv_unit(dims: int, before: int, after: int, kernel: int, norm: str) -> list[nn.Module]:
    """Return a convolution with bias, its norm and a PReLU of one slope for all channels."""
    conv, _, _ = conv_classes(dims)
    return [conv(before, after, kernel, padding=kernel // 2), make_norm(dims, norm, after), nn.PReLU()]


def attention_layer(dims: int, before: int, after: int, attention: nn.Module, norm: str) -> nn.Sequential:
    """Return an attention between 3-convolutions: (B, before, *S) -> (B, after, *S), which is the attention's width."""
    return nn.Sequential(*conv_unit(dims, before, after, 3, norm), attention, *conv_unit(dims, after, after, 3, norm))
