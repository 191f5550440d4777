"""STU-Net. Source: Huang et al. 2023, arXiv:2304.06716; written from the description, no code taken.

A U-Net of residual blocks in six stages that grows in depth and width together. Up-sampling is nearest interpolation
and a 1x1 convolution, so the same weights fit any strides: that is what carries pretrained weights from one plan to
another.

Taken from the plan: the strides. Six stages always: plans with fewer poolings get unit strides at the end, further
poolings are dropped; kernels stay 3, on coarse axes too. Deep supervision counts only as many outputs as the plan has
resolutions. The width is the size's where the plan's first stage has nnU-Net's 32 channels, else in proportion. 2D is
an extension. Option: size S, B (default), L, H.

Parameters with one channel, 105 outputs, published and here: S 14 596 941, B 58 262 669, L 440 302 605,
H 1 457 326 221. Their weights are taken as they are (`train --pretrained FILE`). Not as published: authors fine-tune at
a learning rate of 1e-3 with fresh heads, and repeat the first kernels for further channels as they are; here the rate
is the run's (`--set learning_rate=1e-3`, or `--trainer fine_tuning`), heads stay fresh only where their shapes differ,
and repeated kernels are divided by the number of channels, which keeps their sum.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.strided_projection import strided_projection
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

STAGES = 6
GROWTH = (1, 2, 4, 8, 16, 16)
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the sizes are meant for
SLOPE = 0.01
PARTS = {"conv_blocks_context": "encoder", "upsample_layers": "ups", "conv_blocks_localization": "decoder",
         "seg_outputs": "heads"}  # fmt: skip


class Size(NamedTuple):
    """A published size: residual blocks per stage, channels of the first stage."""

    depth: int
    width: int


SIZES = {"S": Size(1, 16), "B": Size(1, 32), "L": Size(2, 64), "H": Size(3, 96)}


@register.architecture("stu_net")
class STUNet(Architecture):
    """STU-Net, 3D and 2D: residual blocks, up-sampling without weights, sizes S, B, L, H."""

    defaults = {"size": "B", "width": None}  # width: channels of the first stage in place of the size's
    choices = {"size": tuple(SIZES)}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        if len(spec.features) != STAGES:
            raise UserError(f"stu_net has {STAGES} stages, got {len(spec.features)}", where="network.features")
        widths, dims, depths = spec.features, spec.dims, spec.blocks_encoder
        conv, _, _ = conv_classes(dims)
        self.encoder = nn.ModuleList(
            make_stage(dims, widths[level - 1] if level else spec.in_channels, widths[level], stride, depths[level])
            for level, stride in enumerate(spec.strides)
        )
        self.ups = nn.ModuleList(conv(widths[level + 1], widths[level], 1) for level in range(STAGES - 1))
        self.decoder = nn.ModuleList(
            make_stage(dims, 2 * widths[level], widths[level], (1,) * dims, depths[level], projects=True)
            for level in range(STAGES - 1)
        )
        heads = STAGES - 1 if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:heads])

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Make six stages of the size's depth and width, kernels of 3."""
        options = cls.read_options(spec)
        size = SIZES[options["size"]]
        width = options["width"] or max(1, round(size.width * spec.features[0] / USUAL_WIDTH))
        unit = (1,) * spec.dims
        return spec.model_copy(
            update={
                "strides": (*spec.strides, *[unit] * STAGES)[:STAGES],
                "kernel_sizes": ((3,) * spec.dims,) * STAGES,
                "features": tuple(width * factor for factor in GROWTH),
                "blocks_encoder": (size.depth,) * STAGES,
                "blocks_decoder": (size.depth,) * (STAGES - 1),
                "options": {**options, "width": width},
            }
        )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights; their decoder counts from the lowest resolution."""
        translated = {}
        for name, tensor in weights.items():
            match = re.fullmatch(rf"({'|'.join(PARTS)})\.(\d+)\.(.+)", name)
            if match is None:
                translated[name] = tensor
                continue
            part, level, rest = PARTS[match[1]], int(match[2]), match[3]
            level = level if part == "encoder" else STAGES - 2 - level
            rest = rest.removeprefix("conv.") if part == "ups" else rest.replace("conv3.", "skip.")
            translated[f"{part}.{level}.{rest}"] = tensor
        return translated

    def output_weights(self) -> list[float]:
        """Return nnU-Net's weights over the resolutions that the plan has; repeated ones count nothing."""
        strided = sum(math.prod(stride) > 1 for stride in self.spec.strides)
        weights = [0.5**output for output in range(max(1, strided - 1))]
        weights += [0.0] * (len(self.heads) - len(weights))
        return [weight / sum(weights) for weight in weights]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per stage, high to low resolution, for x (B, C, *S)."""
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(STAGES - 1)):
            skip = features[level]
            x = self.ups[level](nn.functional.interpolate(x, size=skip.shape[2:], mode="nearest"))
            x = self.decoder[level](torch.cat([x, skip], 1))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]


class ResidualUnit(nn.Module):
    """Convolution (strided), norm, LeakyReLU, convolution, norm; plus the input or its 1x1 projection; LeakyReLU."""

    def __init__(self, dims: int, before: int, after: int, stride: tuple[int, ...], *, projects: bool):
        super().__init__()
        conv, _, norm = conv_classes(dims)
        self.conv1 = conv(before, after, 3, stride, padding=1)
        self.norm1 = norm(after, affine=True)
        self.conv2 = conv(after, after, 3, padding=1)
        self.norm2 = norm(after, affine=True)
        self.skip = strided_projection(before, after, stride) if projects else nn.Identity()
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, *S / stride) for x (B, before, *S)."""
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.skip(x))


def make_stage(
    dims: int, before: int, after: int, stride: tuple[int, ...], depth: int, *, projects: bool = True
) -> nn.Sequential:
    """Return `depth` residual units; the first has the stride and a projected skip."""
    first = ResidualUnit(dims, before, after, stride, projects=projects)
    unit = (1,) * dims
    return nn.Sequential(first, *(ResidualUnit(dims, after, after, unit, projects=False) for _ in range(depth - 1)))
