"""What the U-Nets of nnU-Net share: layer choices, the split into encoder and decoder, weight names.

Source: Isensee et al. 2021, Nature Methods 18, 203-211; layers from dynamic-network-architectures (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from autoseg.architectures.blocks.joining import joined
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from autoseg.architecture import Architecture
from autoseg.cpu_layers import is_plain
from autoseg.plans import NetworkSpec


def layer_arguments(spec: NetworkSpec) -> dict[str, Any]:
    """Return the keyword arguments that both U-Nets of dynamic-network-architectures take."""
    return {
        "input_channels": spec.in_channels,
        "n_stages": len(spec.features),
        "features_per_stage": spec.features,
        "conv_op": (nn.Conv2d, nn.Conv3d)[spec.dims - 2],
        "kernel_sizes": spec.kernel_sizes,
        "strides": spec.strides,
        "num_classes": spec.num_outputs,
        "n_conv_per_stage_decoder": spec.blocks_decoder,
        "conv_bias": True,
        "norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d)[spec.dims - 2],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": spec.deep_supervision,
    }


class OnlyHead(nn.Module):
    """The decoder of a one-stage network: a 1x1 convolution on the encoder's only feature map."""

    def __init__(self, conv_op: type[nn.Module], channels: int, num_outputs: int):
        super().__init__()
        self.deep_supervision = False
        self.seg_layers = nn.ModuleList([conv_op(channels, num_outputs, 1)])

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, K, *S) for one feature map (B, F, *S)."""
        logits = self.seg_layers[0](features[-1])
        return [logits] if self.deep_supervision else logits


class UNet(Architecture):
    """Encoder, decoder, heads on every decoder stage; parameter names are those of nnU-Net's checkpoints.

    nnU-Net's state dicts name many tensors twice or more (`...convs.0.conv` is `...convs.0.all_modules.0`, and all of
    `encoder.` again under `decoder.encoder.`). This class writes each tensor once, under the `encoder.`/`decoder.`
    name, and loads either form; `nnunet_state_dict` gives the form with all names.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        wrapped = self.build(spec)
        self.encoder = wrapped.encoder
        if len(spec.features) > 1:
            self.decoder = wrapped.decoder
        else:
            arguments = layer_arguments(spec)
            self.decoder = OnlyHead(arguments["conv_op"], spec.features[0], spec.num_outputs)
        self.apply(InitWeights_He(1e-2))
        name_each_tensor_once(self)
        self.train()

    @classmethod
    def build(cls, spec: NetworkSpec) -> nn.Module:
        """Return a network of dynamic-network-architectures with `encoder` and `decoder`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> UNet:
        """Set training mode; only there do the lower-resolution heads run."""
        super().train(mode)
        self.decoder.deep_supervision = mode and self.spec.deep_supervision
        return self

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return one feature map per stage, high to low resolution, for x (B, C, *S)."""
        return self.encoder(x)

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        decoder = self.decoder
        if not is_plain(decoder, UNetDecoder) or decoder.deep_supervision or torch.is_grad_enabled():
            return decoder(features)
        rest = list(features)
        del features  # so that each map goes as soon as it was used: the last is the largest
        x = rest.pop()
        for upsample, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            x = joined(upsample, x, rest.pop())
            for block in _blocks(stage):
                x = block(x)
        return decoder.seg_layers[-1](x)

    def nnunet_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state dict with all of nnU-Net's names."""
        return {name: parameter.detach() for name, parameter in self.named_parameters(remove_duplicate=False)}


def _blocks(stage: nn.Module) -> Iterable[nn.Module]:
    """Return what a stage computes one after the other, so that its input, the largest map of all, need not stay."""
    return stage.convs if is_plain(stage, StackedConvBlocks) and is_plain(stage.convs, nn.Sequential) else [stage]


def name_each_tensor_once(module: nn.Module) -> None:
    """Let the state dict of a module of dynamic-network-architectures hold every tensor once, and load either form."""
    first: dict[nn.Parameter, str] = {}
    aliases = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            aliases[name] = first[parameter]
    module.register_state_dict_post_hook(partial(_drop_aliases, tuple(aliases)))
    module.register_load_state_dict_pre_hook(partial(_fill_aliases, aliases))


def _drop_aliases(aliases: tuple[str, ...], _module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for name in aliases:
        state.pop(prefix + name, None)


def _fill_aliases(aliases: dict[str, str], _module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for alias, name in aliases.items():
        if prefix + name in state:
            state[prefix + alias] = state[prefix + name]
