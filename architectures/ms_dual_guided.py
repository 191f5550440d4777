"""Multi-scale self-guided attention. Source: Sinha and Dolz 2020, JBHI, arXiv:1906.02849.

Written from the description, no code taken. The maps of an encoder are projected to one width, brought to the finest
one's size and fused. Every scale, beside the fused map, passes position and channel attention, gated by a small encoder
and decoder (the semantic module, shared by the scales); a second pass sees the fused map weighted by the first. All
scales predict, before (P) and after (Q) attention; the mean of the Q is the segmentation. Trainer "guided_attention"
adds the losses that guide the semantic modules.

Taken from the plan: the residual encoder (strides, kernels, widths, 1, 3, 4, 6, ... blocks); the scales are its stages
from the second on, or from the third where the second has more than 4096 positions and two are left below. Keys of
larger maps are pooled. Semantic modules pool an axis once if it has fewer than 8 voxels, not at all if others are
longer. The inner width is 64 where the plan has 32 channels, else in proportion. 3D is the same network.
Options: backbone ("plan"; "resnext101", published, 2D only, fixed strides of 4, 2, 2, 2), width, first (stage of the
finest scale), norm ("batch", published and the default in 2D; "instance", the default in 3D, where batches are small).

Left out: heads and convolutions that nothing uses (955 412 parameters). Weights are random, as published; resnext101
takes those of a classifier, too: `train --pretrained FILE`. Deep supervision has two outputs per scale, all of full
resolution and equal weight; without it there are no P.
Published: Adam, learning rate 1e-3, betas 0.9 and 0.99, cross-entropy alone of every map (its recipe, used unless
others are given). The authors halve the rate by when the best epoch was, for which the engine's schedule stands.

Parameters with one channel, five outputs, resnext101: published 103 556 063 without unused ones, here the same. With
the planned encoder of six stages, 32 to 320 channels, in 2D 46 847 455.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.attention_layer import attention_layer, conv_unit
from autoseg.architectures.blocks.channel_attention import ChannelAttention
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.normalization import NORMS, make_norm, usual_norm
from autoseg.architectures.blocks.patch_strides import grids
from autoseg.architectures.blocks.position_attention import PositionAttention
from autoseg.architectures.blocks.resnet import Bottleneck, ResNet
from autoseg.architectures.blocks.unet import layer_arguments, name_each_tensor_once
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

WIDTH = 64  # published, of the projected maps
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
BLOCKS = (1, 3, 4, 6)  # of the planned encoder's first stages; deeper ones repeat the last entry
RESNEXT_STRIDES = ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2))
RESNEXT_WIDTHS, RESNEXT_BLOCKS = (64, 128, 256, 512), (3, 4, 23, 3)
MAX_TOKENS = 4096  # keys of position attention
POOLED_TWICE = 8  # voxels of an axis that the semantic module pools twice
MODES = {2: "bilinear", 3: "trilinear"}


@register.architecture("ms_dual_guided")
class MSDualGuided(Architecture):
    """Multi-scale self-guided attention, 2D and 3D: two passes of dual attention over all scales of an encoder."""

    defaults = {"backbone": "plan", "width": None, "first": None, "norm": None}
    choices = {"backbone": ("plan", "resnext101"), "norm": (None, *NORMS)}
    recipe = {"optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.99, "weight_decay": 0.0, "dice_weight": 0.0}
    trainer = "guided_attention"

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, stages = spec.dims, len(spec.features)
        conv, _, _ = conv_classes(dims)
        norm, width = self.options["norm"] or usual_norm(dims), self.options["width"] or WIDTH
        self.first = self.options["first"] or 1
        if not 1 <= self.first < stages:
            raise UserError(f"ms_dual_guided needs stages below the first, has {stages}", where="network.features")
        if self.options["backbone"] == "resnext101":
            self.backbone, skipped = resnext101(spec.in_channels, norm), 1
        else:
            self.backbone, skipped = planned_encoder(spec), 0
        self.used = slice(self.first - skipped, None)  # the backbone's maps that are scales
        grid = grids(spec)[self.first]
        scales = range(stages - self.first)
        self.project = nn.ModuleList(
            nn.Sequential(*conv_unit(dims, spec.features[self.first + scale], width, 1, norm)) for scale in scales
        )
        self.fuse = multi_conv(dims, width * len(scales), width, norm)
        self.passes = nn.ModuleList(GuidedPass(dims, width, len(scales), grid, norm) for _ in range(2))
        self.early_heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for _ in scales if spec.deep_supervision)
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for _ in scales)
        self.apply(_draw_weights)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix width, norm and the finest scale; the published backbone has its own strides and widths."""
        options = cls.read_options(spec)
        published = options["backbone"] == "resnext101"
        planned = WIDTH if published else max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        options["width"] = options["width"] or planned
        options["norm"] = options["norm"] or usual_norm(spec.dims)
        update = {"blocks_encoder": (*BLOCKS, *[BLOCKS[-1]] * len(spec.features))[: len(spec.features)]}
        if published:
            if spec.dims != 2:
                raise UserError("the backbone resnext101 is 2D", where="network.options", mend='use backbone "plan"')
            update = {
                "strides": RESNEXT_STRIDES,
                "kernel_sizes": ((3, 3),) * len(RESNEXT_STRIDES),
                "features": (RESNEXT_WIDTHS[0], *(Bottleneck.expansion * width for width in RESNEXT_WIDTHS)),
                "blocks_encoder": (1, *RESNEXT_BLOCKS),
            }
            options["first"] = 1
        spec = spec.model_copy(update={**update, "blocks_decoder": (1,) * (len(update["blocks_encoder"]) - 1)})
        if options["first"] is None:
            large = len(spec.features) > 1 and math.prod(grids(spec)[1]) > MAX_TOKENS
            options["first"] = 2 if large and len(spec.features) > 3 else 1
        return spec.model_copy(update={"options": options})

    def output_weights(self) -> list[float] | None:
        """All outputs count the same, those after attention first."""
        return [1 / (2 * len(self.heads))] * (2 * len(self.heads))

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a ResNeXt-101 32x8d under the widespread names, conv1, bn1, layer1, ..., are the backbone's."""
        if "layer1.0.conv1.weight" not in weights:
            return weights
        return {f"backbone.{name}": tensor for name, tensor in weights.items()}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's map (B, F, *S / stride) of every scale, high to low resolution, for x (B, C, *S)."""
        return self.backbone(x)[self.used]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S); while training with deep supervision all Q, then all P, finest scale first."""
        size, mode = features[0].shape[2:], MODES[self.spec.dims]
        maps = [project(x) for project, x in zip(self.project, features, strict=True)]
        maps = [maps[0], *(nn.functional.interpolate(x, size=size, mode=mode) for x in maps[1:])]
        fused = self.fuse(torch.cat(maps[::-1], 1))
        attention = self.passes[0]([torch.cat([x, fused], 1) for x in maps])
        refined = self.passes[1]([torch.cat([x, a * fused], 1) for x, a in zip(maps, attention, strict=True)])
        outputs = [head(x) for head, x in zip(self.heads, refined, strict=True)]
        if not (self.training and self.spec.deep_supervision):
            return self._resize(torch.stack(outputs).mean(0))
        outputs += [head(x) for head, x in zip(self.early_heads, maps, strict=True)]
        return [self._resize(output) for output in outputs]

    def _resize(self, logits: Tensor) -> Tensor:
        step = [math.prod(axis) for axis in zip(*self.spec.strides[: self.first + 1], strict=True)]
        size = tuple(edge * factor for edge, factor in zip(logits.shape[2:], step, strict=True))
        return nn.functional.interpolate(logits, size=size, mode=MODES[self.spec.dims])


class GuidedPass(nn.Module):
    """One attention step: for all scales u (B, 2 C, *S) -> (B, C, *S)."""

    def __init__(self, dims: int, width: int, scales: int, grid: Sequence[int], norm: str):
        super().__init__()
        conv, _, _ = conv_classes(dims)

        def position() -> nn.Module:
            return PositionAttention(dims, width, max_tokens=MAX_TOKENS)

        self.semantic = SemanticModule(2 * width, semantic_pools(grid), norm)
        self.position = nn.ModuleList(attention_layer(dims, 2 * width, width, position(), norm) for _ in range(scales))
        self.channel = nn.ModuleList(
            attention_layer(dims, 2 * width, width, ChannelAttention(), norm) for _ in range(scales)
        )
        self.gates = nn.ModuleList(conv(2 * width, width, 3, padding=1) for _ in range(scales))
        self.out = nn.ModuleList(conv(width, width, 1) for _ in range(scales))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the attended maps."""
        attended = []
        for scale in reversed(range(len(maps))):  # as published, coarse to fine
            u = maps[scale]
            _, decoded = self.semantic(u)
            both = self.channel[scale](u) + self.position[scale](u)
            attended.append(self.out[scale](both * self.gates[scale](decoded)))
        return attended[::-1]


class SemanticModule(nn.Module):
    """A small encoder and decoder: u (B, C, *S) -> its latent code (all numbers of the batch), and (B, C, *S)."""

    def __init__(self, width: int, pools: Sequence[tuple[int, ...]], norm: str):
        super().__init__()
        dims = len(pools[0])
        _, transposed, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
        widths, kernel = (width, 2 * width, 4 * width), (3,) * dims
        self.down = nn.ModuleList(
            nn.Sequential(*double_conv(widths[step], widths[step + 1], kernel, norm), pool(pools[step], ceil_mode=True))
            for step in range(2)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                *double_conv(widths[step + 1], widths[step], kernel, norm),
                transposed(widths[step], widths[step], pools[step], pools[step]),
            )
            for step in range(2)
        )

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code and the decoded map."""
        middle = self.down[0](u)
        code = self.down[1](middle)
        return code.flatten(), _fit(self.up[0](_fit(self.up[1](code), middle)), u)


def _fit(x: Tensor, like: Tensor) -> Tensor:
    """Return x at the size of `like`; they differ where pooling does not divide."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return nn.functional.interpolate(x, size=like.shape[2:], mode=MODES[x.ndim - 2])


def semantic_pools(grid: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the two poolings of the semantic module for a map of that size."""
    once = tuple(2 if edge >= POOLED_TWICE or (edge == max(grid) and edge > 1) else 1 for edge in grid)
    return [once, tuple(2 if edge >= POOLED_TWICE else 1 for edge in grid)]


def multi_conv(dims: int, before: int, after: int, norm: str) -> nn.Sequential:
    """Return the fusing convolutions, of 3, 3 and 1."""
    steps = ((before, 3), (after, 3), (after, 1))
    return nn.Sequential(*(layer for width, kernel in steps for layer in conv_unit(dims, width, after, kernel, norm)))


def planned_encoder(spec: NetworkSpec) -> nn.Module:
    """Return nnU-Net's residual encoder, which gives one map per stage."""
    arguments = layer_arguments(spec)
    for name in ("num_classes", "n_conv_per_stage_decoder", "deep_supervision"):
        del arguments[name]
    encoder = ResidualEncoder(**arguments, n_blocks_per_stage=spec.blocks_encoder, return_skips=True)
    name_each_tensor_once(encoder)
    return encoder


def resnext101(in_channels: int, norm: str) -> ResNet:
    """Return ResNeXt-101 32x8d, which gives the maps of its four layers."""
    strides = ((2, 2), (1, 1), (2, 2), (2, 2), (2, 2))
    kernels = ((3, 3),) * len(strides)
    return ResNet(
        in_channels, RESNEXT_WIDTHS, RESNEXT_BLOCKS, strides, kernels, block=ResNeXtBlock, norm=norm, pool=(2, 2)
    )


class ResNeXtBlock(Bottleneck):
    """The bottleneck with four times the inner width, in 32 groups. Source: Xie et al. 2017, arXiv:1611.05431."""

    def __init__(self, before: int, width: int, stride: Sequence[int], kernel: Sequence[int], norm: str):
        super().__init__(before, width, stride, kernel, norm)
        dims, inner, after = len(stride), 4 * width, self.expansion * width
        conv, _, _ = conv_classes(dims)
        padding = tuple(edge // 2 for edge in kernel)
        self.conv1, self.bn1 = conv(before, inner, 1, bias=False), make_norm(dims, norm, inner)
        self.conv2 = conv(inner, inner, tuple(kernel), tuple(stride), padding, groups=32, bias=False)
        self.bn2 = make_norm(dims, norm, inner)
        self.conv3 = conv(inner, after, 1, bias=False)


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
