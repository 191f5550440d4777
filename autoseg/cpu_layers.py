"""1x1 convolutions that give what torch's own give but for rounding, computed as is fastest on a CPU.

Instance norm stays torch's. Group norm of single channels keeps the channels last and takes 0.6 to 0.8 of the time with
its convolution, but it adds up voxels one after the other, and loses channels that vary little about a large value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def suit_to_cpu(network: nn.Module) -> None:
    """Let the 1x1 convolutions of a network compute as is fastest on a CPU, in place.

    Modules keep their places, parameters, names and hooks; what is exactly torch's class becomes one derived from it.
    Elsewhere than on a CPU, and where they are exported, traced or compiled, they compute as before.
    """
    for module in network.modules():
        derived = _DERIVED.get(type(module))
        if derived is not None and _is_pointwise(module):
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
        """Return (B, K, *S) for x (B, C, *S), in the number format that torch's own layer gives."""
        if not _computes_on_cpu(x) or not x.is_contiguous() or x.ndim != self.weight.ndim or self.bias is None:
            return super().forward(x)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        found = torch.baddbmm(self.bias.to(x.dtype)[None, :, None], weight, x.flatten(2))
        return found.view(len(x), len(self.weight), *x.shape[2:])


def _computes_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


class _PointwiseConv2d(_Pointwise, nn.Conv2d):
    pass


class _PointwiseConv3d(_Pointwise, nn.Conv3d):
    pass


_DERIVED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _PointwiseConv2d, nn.Conv3d: _PointwiseConv3d}
