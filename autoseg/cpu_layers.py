"""1x1 convolutions and instance norms that give what torch's own give but for rounding, as is fastest on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoseg.cpu_norm import instance_norm, may_normalise


def suit_to_cpu(network: nn.Module) -> None:
    """Let the 1x1 convolutions and instance norms of a network compute as is fastest on a CPU, in place.

    Modules keep their places, parameters, names and hooks; what is exactly torch's class becomes one derived from it.
    Elsewhere than on a CPU, and where they are exported, traced or compiled, they compute as before.
    """
    for module in network.modules():
        derived = _DERIVED.get(type(module))
        if derived is not None and (issubclass(derived, _InstanceNorm) or _is_pointwise(module)):
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


class _InstanceNorm:
    """Instance norm that leaves the channels last.

    torch's own gives wrong gradients by the input, without a word, where a single image's gradient comes with the
    channels last, as convolutions give it (2.13, `benchmarks/RESULTS.md`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) for x (B, C, *S)."""
        if not _computes_on_cpu(x):
            return super().forward(x)
        as_usual = x.ndim == self._get_no_batch_dim() + 1 and x.shape[1] == self.num_features
        if as_usual and not self.track_running_stats and may_normalise(x, self.weight):
            return instance_norm(x, self.weight, self.bias, self.eps)
        found = super().forward(x)
        if found.requires_grad:
            found.register_hook(Tensor.contiguous)
        return found


class _InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


_DERIVED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _PointwiseConv2d, nn.Conv3d: _PointwiseConv3d,
    nn.InstanceNorm2d: _InstanceNorm2d, nn.InstanceNorm3d: _InstanceNorm3d,
}  # fmt: skip
