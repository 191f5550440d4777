"""3D convolutions of small maps on a CPU in bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoseg.cpu_layers import Conv3d


class SmallMapConv3d(Conv3d):
    """A 3D convolution that computes maps smaller than its kernel in float32 where a CPU's autocast is on.

    oneDNN (in torch 2.13) does not write all gradients of the weights there in bf16, for instance of kernels of 3 on
    maps 2 voxels deep: they are whatever stood in memory, often NaN. Such maps are those at the bottom of a network and
    cost little. Parameters and state are those of nn.Conv3d.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        small = any(size < edge for size, edge in zip(input.shape[2:], weight.shape[2:], strict=True))
        if not small or input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            output = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return output.to(torch.get_autocast_dtype("cpu"))


def guard_small_maps(module: nn.Module) -> None:
    """Make every nn.Conv3d of a network a SmallMapConv3d, in place; classes that others derived stay as they are."""
    for part in module.modules():
        if type(part) in (nn.Conv3d, Conv3d):
            part.__class__ = SmallMapConv3d
