"""Convolutions and instance norms that give what torch's own give but for rounding, as is fastest on a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.cpu_norm import instance_norm, may_normalise, normalise, right_gradient

FEW = 8  # outputs: up to so many are put channels first after a convolution, more come so from a product
ONEDNN = torch.backends.mkldnn.is_available()


def suit_to_cpu(network: nn.Module) -> None:
    """Let the convolutions and instance norms of a network compute as is fastest on a CPU, in place.

    Modules keep their places, parameters, names and hooks; what is exactly torch's class becomes one derived from it.
    Elsewhere than on a CPU, and under torch.compile, torch.export, torch.jit.trace and torch.func, they compute as
    before; torch.fx.symbolic_trace, torch.jit.script, FakeTensorMode, torch.autograd.forward_ad and batched gradients
    cannot take such networks. A 1x1 convolution with as many channels as the network has outputs counts as a head.
    """
    outputs = {module.spec.num_outputs for module in network.modules() if isinstance(module, Architecture)}
    for module in network.modules():
        kind = type(module)
        if kind in _LAYERS:
            module.__class__ = _LAYERS[kind]
        elif kind in _CONVOLUTIONS:
            usual, pointwise, head = _CONVOLUTIONS[kind]
            narrow = head if module.out_channels in outputs else pointwise
            module.__class__ = narrow if _is_pointwise(module) else usual
        elif kind is nn.Sequential and _holds_norm_after_convolution(module):
            module.__class__ = _Sequence


def _is_pointwise(conv: nn.Module) -> bool:
    return math.prod(conv.kernel_size) == math.prod(conv.stride) == conv.groups == 1 and not _is_padded(conv)


def _is_padded(conv: nn.Module) -> bool:
    return conv.padding not in ("same", "valid") and any(conv.padding)


def computes_on_cpu(x: Tensor) -> bool:
    """Return whether operations on x are carried out, on a CPU, not followed by a compiler, a tracer or torch.func."""
    seen_through = (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    )
    return x.device.type == "cpu" and not seen_through


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a module is exactly of one of these classes, and nothing but its `forward` is run by a call."""
    everywhere = nn.modules.module
    hooks = module._forward_hooks, module._forward_pre_hooks
    hooks_of_all = everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks
    changed = "forward" in vars(module) or module._compiled_call_impl is not None or any((*hooks, *hooks_of_all))
    return type(module) in kinds and not changed


class _Convolution:
    """A convolution that takes oneDNN for a single image, too, in the forward pass.

    By itself torch convolves a single image of up to 20480 lines and channels in fp32 without: 2 to 18 times slower. So
    it computes the gradients still, for which it has no other way to ask.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        usual = usual and (bias is None or bias.dtype == weight.dtype)
        if not usual or not _is_single_image(x, weight) or (_is_pointwise(self) and torch.get_num_threads() == 1):
            return super()._conv_forward(x, weight, bias)
        return torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)


class _Pointwise(_Convolution):
    """A 1x1 convolution as one product of matrices where its input does not lie with the channels last.

    oneDNN brings such input into its own layout, padded to 16 or 32 channels: for two classes from eight channels that
    takes four times as long, and eight times the memory of the input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K, *S) for x (B, C, *S), in the number format that torch's own layer gives."""
        return self._product(x) if self._is_usual(x) and x.is_contiguous() else super().forward(x)

    def _is_usual(self, x: Tensor) -> bool:
        if not computes_on_cpu(x) or self.bias is None or self.bias.dtype != self.weight.dtype:
            return False
        return x.ndim == self.weight.ndim and x.shape[1] == self.in_channels

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        found = torch.baddbmm(self.bias.to(x.dtype)[None, :, None], weight, x.flatten(2))
        return found.view(x.shape[0], self.out_channels, *x.shape[2:])


class _Head(_Pointwise):
    """A 1x1 convolution to logits, which are to lie with the channels first: what follows goes class by class.

    To put more than a few channels first afterwards would take far longer than the product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, *S) for x (B, C, *S)."""
        if not self._is_usual(x):
            return super().forward(x)
        return self._product(x) if self.out_channels > FEW else super().forward(x).contiguous()


class _Upsampling:
    """A transposed convolution whose kernel is its stride, and which takes a single image as a batch of its slices.

    Slices of a map with the channels last are where they are, as is what comes of them; torch takes oneDNN for batches.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return (B, K, *S') for x (B, C, *S)."""
        usual = (
            output_size is None and tuple(self.kernel_size) == tuple(self.stride) and _is_single_image(x, self.weight)
        )
        if not usual or any((*self.padding, *self.output_padding)) or math.prod(self.dilation) != 1:
            return super().forward(x, output_size)
        rows = x.movedim(1, -1)  # the steps in memory: with them torch sees the channels last also where a size is 1
        slices = rows.reshape(rows.shape[1], 1, *rows.shape[2:]).movedim(-1, 1)
        found = super().forward(slices).movedim(1, -1)
        return found.reshape(1, -1, *found.shape[2:]).movedim(-1, 1)


def _is_single_image(x: Tensor, weight: Tensor) -> bool:
    """Return whether x is a batch of one image on a CPU, in single precision as the weights are, for oneDNN."""
    if not computes_on_cpu(x) or x.ndim != weight.ndim or x.shape[0] != 1 or x.numel() == 0:
        return False
    precise = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return precise and ONEDNN and torch._C._get_mkldnn_enabled()


class Conv2d(_Convolution, nn.Conv2d):
    """A 2D convolution as a CPU computes it fastest."""


class Conv3d(_Convolution, nn.Conv3d):
    """A 3D convolution as a CPU computes it fastest."""


class _PointwiseConv2d(_Pointwise, nn.Conv2d):
    pass


class _PointwiseConv3d(_Pointwise, nn.Conv3d):
    pass


class _HeadConv2d(_Head, nn.Conv2d):
    pass


class _HeadConv3d(_Head, nn.Conv3d):
    pass


class _Upsampling2d(_Upsampling, nn.ConvTranspose2d):
    pass


class _Upsampling3d(_Upsampling, nn.ConvTranspose3d):
    pass


class _ChannelsLastNorm:
    """Instance norm that leaves the channels last, and whose gradient is right for a single image, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) for x (B, C, *S)."""
        if not computes_on_cpu(x):
            return super().forward(x)
        return self._by(instance_norm, x) if self._is_usual(x) else right_gradient(super().forward(x))

    def overwriting(self, x: Tensor) -> Tensor:
        """Return what `forward` returns on a CPU without a gradient, in the place of x if it may."""
        return self._by(normalise, x) if self._is_usual(x) else self.forward(x)

    def _by(self, function: Callable[..., Tensor], x: Tensor) -> Tensor:
        return function(x, self.weight, self.bias, self.eps)

    def _is_usual(self, x: Tensor) -> bool:
        known = x.ndim == self._get_no_batch_dim() + 1 and x.shape[1] == self.num_features and self.eps > 0
        return known and not self.track_running_stats and may_normalise(x, self.weight, self.bias)


class _InstanceNorm2d(_ChannelsLastNorm, nn.InstanceNorm2d):
    pass


class _InstanceNorm3d(_ChannelsLastNorm, nn.InstanceNorm3d):
    pass


class _Sequence(nn.Sequential):
    """Modules one after the other, where without a gradient a norm writes over what the convolution before it gave.

    Nobody else has that, and a prediction makes half as many feature maps.
    """

    def forward(self, input: Any) -> Any:
        """Return what the last module gives for what the first one takes."""
        if torch.is_grad_enabled() or not isinstance(input, Tensor) or not computes_on_cpu(input):
            return super().forward(input)
        before = None
        for module in self:
            input = module.overwriting(input) if _may_overwrite(before, module) else module(input)
            before = module
        return input


def _may_overwrite(before: nn.Module | None, module: nn.Module) -> bool:
    return before is not None and is_plain(before, *_OWN_CONVOLUTIONS) and is_plain(module, *_OWN_NORMS)


def _holds_norm_after_convolution(sequence: nn.Sequential) -> bool:
    return any(
        isinstance(first, (nn.Conv2d, nn.Conv3d)) and isinstance(second, (nn.InstanceNorm2d, nn.InstanceNorm3d))
        for first, second in itertools.pairwise(sequence)
    )


_CONVOLUTIONS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Conv2d: (Conv2d, _PointwiseConv2d, _HeadConv2d),
    nn.Conv3d: (Conv3d, _PointwiseConv3d, _HeadConv3d),
}
_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose2d: _Upsampling2d,
    nn.ConvTranspose3d: _Upsampling3d,
    nn.InstanceNorm2d: _InstanceNorm2d,
    nn.InstanceNorm3d: _InstanceNorm3d,
}
UPSAMPLINGS = (nn.ConvTranspose2d, nn.ConvTranspose3d, _Upsampling2d, _Upsampling3d)
_OWN_CONVOLUTIONS = tuple(kind for kinds in _CONVOLUTIONS.values() for kind in kinds)
_OWN_NORMS = (_InstanceNorm2d, _InstanceNorm3d)
