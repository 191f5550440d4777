"""Layers that give the same as torch's own, computed as is fastest on a CPU; a network gets them in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_CHANNELS = 16  # with fewer in bf16, torch's group norm reads what lies with the channels last element by element
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def suit_to_cpu(network: nn.Module) -> None:
    """Let the 1x1 convolutions and instance norms of a network compute as is fastest on a CPU, in place.

    Modules keep their places, parameters, names and hooks; what is exactly torch's class becomes one derived from it.
    Elsewhere than on a CPU they compute as before.
    """
    for module in network.modules():
        derived = _DERIVED.get(type(module))
        if derived is not None and (not isinstance(module, nn.modules.conv._ConvNd) or _is_pointwise(module)):
            module.__class__ = derived


def _is_pointwise(conv: nn.Module) -> bool:
    return math.prod(conv.kernel_size) == math.prod(conv.stride) == conv.groups == 1 and not _is_padded(conv)


def _is_padded(conv: nn.Module) -> bool:
    return conv.padding not in ("same", "valid") and any(conv.padding)


class _Pointwise:
    """A 1x1 convolution as one product of matrices where its input does not lie with the channels last.

    oneDNN brings such input into its own layout, padded to 16 or 32 channels: for two classes from eight channels that
    takes four times as long, and eight times the memory of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _computes_on_cpu(x) or not x.is_contiguous() or x.ndim != self.weight.ndim or self.bias is None:
            return super().forward(x)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        found = torch.baddbmm(self.bias.to(x.dtype)[None, :, None], weight, x.flatten(2))
        return found.view(len(x), -1, *x.shape[2:])


class _InstanceNorm:
    """Instance norm that keeps the channels last, as group norm of single channels, where no gradient is needed.

    torch's own copies such input, and the next convolution copies it back. Its backward pass is the faster one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.track_running_stats or not _lies_channels_last(x) or torch.is_grad_enabled():
            return super().forward(x)
        if x.dtype == torch.bfloat16 and x.shape[1] < FEW_CHANNELS:
            return super().forward(x)
        return functional.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


def _computes_on_cpu(x: Tensor) -> bool:
    """Tell whether numbers are computed now, on a CPU; what is exported or compiled keeps the plain layers."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _lies_channels_last(x: Tensor) -> bool:
    layout = _LAYOUTS.get(x.ndim)
    if layout is None or not _computes_on_cpu(x):
        return False
    return x.is_contiguous(memory_format=layout) and not x.is_contiguous()


class _PointwiseConv2d(_Pointwise, nn.Conv2d):
    pass


class _PointwiseConv3d(_Pointwise, nn.Conv3d):
    pass


class _InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


_DERIVED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _PointwiseConv2d,
    nn.Conv3d: _PointwiseConv3d,
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
}
