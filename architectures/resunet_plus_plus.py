"""ResUNet++. Source: Jha et al. 2019, ISM, arXiv:1911.07067; written from the description, no code taken.

A U-Net of pre-activated residual units with strided convolutions, squeeze-and-excitation after every unit (decoder
included, as in the published code), ASPP as bridge and before the output, and an attention without sigmoid before each
up-sampling. Small: 4 M parameters.

Taken from the plan: stages and strides (of units, attention's pooling, up-sampling), and the width, by default 16 where
the plan has 32, doubled per stage up to 512 in 2D and 320 in 3D; the bridge is twice as wide as the last stage. Kernels
are 3. Options: base (channels of the first stage), aspp_scale ("plan": the bridge's dilations 6, 12, 18, meant for a
map of 32, grow and shrink with the planned map, and none reaches beyond an axis; "paper": as published), norm ("batch",
published and the default in 2D; "instance", the default in 3D, where batches are small). Dilations are logged (debug).

3D is an extension. With one sample per batch, batch norm takes its statistics over the sample's positions. Heads at
lower resolution, made only with deep supervision, are an extension too. Published optimiser: Nadam, learning rate 1e-4
(its recipe, used unless others are given; their later code has Adam, and cross-entropy); with `own_recipe=published`
Dice loss alone, with smooth 1, and no deep supervision. They lower the rate where the loss stays, for which the
engine's schedule stands.

Parameters with three channels, one output, four stages, without deep supervision: published 4 062 993, here the same.
"""

from __future__ import annotations

import logging
import math

import torch
from autoseg.architectures.blocks.aspp import DILATIONS, SumASPP, scaled_dilations
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import NORMS, make_norm, usual_norm
from autoseg.architectures.blocks.squeeze_excite import SqueezeExcite
from autoseg.architectures.blocks.strided_projection import strided_projection
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

log = logging.getLogger(__name__)

WIDTH = 16  # published, of the first stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
MOST = {2: 512, 3: 320}
USUAL_BRIDGE = 32  # voxels of the map that the published dilations are meant for
REDUCTION = 8  # of squeeze-and-excitation


@register.architecture("resunet_plus_plus")
class ResUNetPlusPlus(Architecture):
    """ResUNet++, 2D and 3D: residual units with squeeze-and-excitation, ASPP, attention in the decoder."""

    defaults = {"base": None, "aspp_scale": "plan", "norm": None}
    choices = {"aspp_scale": ("plan", "paper"), "norm": (None, *NORMS)}
    recipe = {"optimizer": "nadam", "learning_rate": 1e-4, "weight_decay": 0.0}
    as_published = {"cross_entropy_weight": 0.0, "dice_smooth": 1.0, "deep_supervision": False}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths = spec.dims, spec.features
        norm = self.options["norm"] or usual_norm(dims)
        conv, _, _ = conv_classes(dims)
        bridge, last = self._dilations(spec)
        self.encoder = nn.ModuleList(
            ResidualUnit(widths[s - 1] if s else spec.in_channels, widths[s], spec.strides[s], norm, stem=s == 0)
            for s in range(len(widths))
        )
        self.bridge = SumASPP(dims, widths[-1], 2 * widths[-1], dilations=bridge, norm=norm)
        self.decoder = nn.ModuleList(
            DecoderStep(widths[s], 2 * widths[s + 1], 2 * widths[s], spec.strides[s + 1], norm)
            for s in range(len(widths) - 1)
        )
        self.aspp = SumASPP(dims, 2 * widths[0], widths[0], dilations=last, norm=norm)
        heads = max(1, len(widths) - 1) if spec.deep_supervision else 1
        self.heads = nn.ModuleList(
            conv(2 * width if s else width, spec.num_outputs, 1) for s, width in enumerate(widths[:heads])
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):  # of squeeze-and-excitation
                nn.init.kaiming_normal_(module.weight)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Widths double from `options["base"]` or from 16, scaled as the plan's are; kernels of 3."""
        options, stages = cls.read_options(spec), len(spec.features)
        base = options["base"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        return spec.model_copy(
            update={
                "kernel_sizes": ((3,) * spec.dims,) * stages,
                "features": tuple(min(MOST[spec.dims], base * 2**stage) for stage in range(stages)),
                "blocks_encoder": (2,) * stages,
                "blocks_decoder": (2,) * (stages - 1),
                "options": {**options, "base": base, "norm": options["norm"] or usual_norm(spec.dims)},
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the units' maps, the last one after the bridge, high to low resolution, for x (B, C, *S)."""
        features = []
        for unit in self.encoder:
            x = unit(x)
            features.append(x)
        return [*features[:-1], self.bridge(x)]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](features[level], x)
            if level and everything:
                outputs.append(self.heads[level](x))
        outputs.append(self.heads[0](self.aspp(x)))
        return outputs[::-1] if everything else outputs[-1]

    def _dilations(self, spec: NetworkSpec) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the dilations of bridge and last ASPP, per branch and axis."""
        if self.options["aspp_scale"] == "paper":
            published = [(step,) * spec.dims for step in DILATIONS]
            return published, published
        bottom = [math.ceil(edge / step) for edge, step in zip(spec.patch_size, spec.total_stride, strict=True)]
        bridge, last = scaled_dilations(bottom, usual=USUAL_BRIDGE), scaled_dilations(spec.patch_size)
        log.debug("resunet_plus_plus: dilations %s on the bridge, %s before the output", bridge, last)
        return bridge, last


class ResidualUnit(nn.Module):
    """Pre-activated: norm, ReLU, convolution (strided), norm, ReLU, convolution; plus the normalised projection; SE.

    x (B, before, *S) -> (B, after, *S / stride). The stem leaves the first norm and ReLU out.
    """

    def __init__(self, before: int, after: int, stride: tuple[int, ...], norm: str, *, stem: bool = False):
        super().__init__()
        dims = len(stride)
        conv, _, _ = conv_classes(dims)
        first = [] if stem else normed(dims, before, norm)
        self.layers = nn.Sequential(
            *first,
            conv(before, after, 3, stride, padding=1),
            *normed(dims, after, norm),
            conv(after, after, 3, padding=1),
        )
        self.skip = nn.Sequential(strided_projection(before, after, stride), make_norm(dims, norm, after))
        self.excite = SqueezeExcite(after, reduction=REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        return self.excite(self.layers(x) + self.skip(x))


class ChannelwiseAttention(nn.Module):
    """Weights x (B, width, *S / stride) by a sum of itself and the pooled skip (B, guide, *S), without sigmoid."""

    def __init__(self, guide: int, width: int, stride: tuple[int, ...], norm: str):
        super().__init__()
        dims = len(stride)
        conv, _, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]

        def unit(before: int) -> list[nn.Module]:
            return [*normed(dims, before, norm), conv(before, width, 3, padding=1)]

        self.from_skip = nn.Sequential(*unit(guide), pool(stride, stride, ceil_mode=True))
        self.from_below = nn.Sequential(*unit(width))
        self.score = nn.Sequential(*unit(width))

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Return the weighted x."""
        return self.score(self.from_skip(skip) + self.from_below(x)) * x


class DecoderStep(nn.Module):
    """Attention, nearest up-sampling, concatenation, residual unit: skip (B, w, *S), x (B, v, *S / stride)."""

    def __init__(self, skip: int, below: int, after: int, stride: tuple[int, ...], norm: str):
        super().__init__()
        self.attention = ChannelwiseAttention(skip, below, stride, norm)
        self.unit = ResidualUnit(skip + below, after, (1,) * len(stride), norm)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Return (B, after, *S)."""
        up = nn.functional.interpolate(self.attention(skip, x), size=skip.shape[2:], mode="nearest")
        return self.unit(torch.cat([up, skip], 1))


def normed(dims: int, width: int, norm: str) -> list[nn.Module]:
    """Return norm and ReLU."""
    return [make_norm(dims, norm, width), nn.ReLU(inplace=True)]
