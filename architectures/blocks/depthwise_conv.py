"""Depthwise convolution that keeps the size, for kernels longer than the map, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LONGEST = 13  # voxels along the last axis that oneDNN makes a kernel for in bf16, whatever the number of channels


def depthwise(width: int, kernel: Sequence[int], *, bias: bool = True) -> nn.Module:
    """Return a zero-padded convolution of every channel by itself, of odd edges: (B, width, *S) -> the same."""
    conv = DepthwiseConv2d if len(kernel) == 2 else DepthwiseConv3d
    padding = tuple(edge // 2 for edge in kernel)
    return conv(width, width, tuple(kernel), padding=padding, groups=width, bias=bias)


class _WithinReach(nn.Module):
    """Leaves out the weights that meet nothing but padding on every position of the map.

    The result is the same, and their work is spared. Maps smaller than the kernel are computed in float32 on a CPU, as
    `autoseg.training.small_maps` does for other convolutions: oneDNN does not write all gradients there in bf16. So are
    kernels longer than `LONGEST`: for 16 channels or fewer, and some other numbers, oneDNN (in torch 2.13, for AVX-512)
    writes machine code for them in bf16 until the process is killed.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        reach = [min(half, size - 1) for half, size in zip(self.padding, x.shape[2:], strict=True)]
        middle = (slice(half - near, half + near + 1) for half, near in zip(self.padding, reach, strict=True))
        weight = self.weight if tuple(reach) == self.padding else self.weight[(..., *middle)]
        small = any(size < edge for size, edge in zip(x.shape[2:], weight.shape[2:], strict=True))
        if not (small or weight.shape[-1] > LONGEST) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.function(x, weight, self.bias, padding=reach, groups=self.groups)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self.function(x.float(), weight.float(), bias, padding=reach, groups=self.groups)


class DepthwiseConv2d(_WithinReach, nn.Conv2d):
    """The form for maps (B, C, H, W)."""

    function = staticmethod(nn.functional.conv2d)


class DepthwiseConv3d(_WithinReach, nn.Conv3d):
    """The form for maps (B, C, D, H, W)."""

    function = staticmethod(nn.functional.conv3d)
