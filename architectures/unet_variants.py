"""UNet, Res-UNet, Attention UNet, Attention Res-UNet. Source: Ehab and Li 2023, arXiv:2309.13013.

Written from the description, no code taken. Four networks of one width and depth, to be compared: blocks of two
convolutions or residual blocks, plain skips or skips gated by the coarser decoder map. Max-pooling down, nearest
neighbours up without weights, batch norm on the logits.

Taken from the plan: levels, strides, kernels, and the width: 64 channels in 2D and 32 in 3D where the plan's first
stage has nnU-Net's 32, else in proportion, doubled per level up to 512 in 2D and 320 in 3D.
Options: base (channels of the first level), levels (a sixth is the paper's "deep network layer"), paper_widths (no
upper limit), norm ("batch", the default in 2D as published, or "instance", the default in 3D, where batches are small),
logit_bn (with batch norm only), dropout (0).

With one sample per batch, batch norm takes its statistics over the sample's positions; that trains, too. Published
optimiser: Adam at rates from 1e-4 to 1e-2, which is no recipe: the engine's is used. The study's losses for rare
foreground are those of trainer "focal": Dice plus focal loss, or `--set dice_weight=0` for the focal loss alone; Dice
plus cross-entropy, the third, is the engine's.
Deviation: heads at lower resolution, as on the highest, only with deep supervision, which the paper does not use.

Parameters with three channels, one output, five levels from 64: published unet 31 390 723, att_res_unet 39 068 871,
with one channel res_unet 33 139 267; here the same with paper_widths; attention_unet published 37.3 million, here
37 319 047. Our default, 512 at most: 19 591 171 (unet), 20 815 171 (res_unet), 25 257 351 (attention_unet), 26 481 351
(att_res_unet).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from autoseg.architectures.blocks.attention_gate import CoarseAttentionGate
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.normalization import NORMS, make_norm, usual_norm
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

WIDTHS = {2: 64, 3: 32}  # of the first level, by dimensions
USUAL_WIDTH = 32  # of nnU-Net's first stage, which these widths are meant for
MOST = {2: 512, 3: 320}


class UNetVariant(Architecture):
    """What the four share; `residual` and `gated` tell them apart."""

    defaults = {
        "base": None,
        "levels": None,
        "paper_widths": False,
        "norm": None,
        "logit_bn": True,
        "dropout": 0.0,
    }
    choices = {"norm": (None, *NORMS), "paper_widths": (True, False), "logit_bn": (True, False)}
    residual: ClassVar[bool] = False
    gated: ClassVar[bool] = False

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, kernels = spec.dims, spec.features, spec.kernel_sizes
        norm, dropout = self.options["norm"] or usual_norm(dims), float(self.options["dropout"])
        conv, _, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
        block = ResidualBlock if self.residual else ConvBlock
        steps = range(len(widths) - 1)
        before = (spec.in_channels, *widths)
        self.encoder = nn.ModuleList(
            block(before[level], width, kernels[level], norm, dropout) for level, width in enumerate(widths)
        )
        self.pools = nn.ModuleList(pool(stride, stride) for stride in spec.strides[1:])
        self.decoder = nn.ModuleList(
            block(widths[level] + widths[level + 1], widths[level], kernels[level], norm, dropout) for level in steps
        )
        self.signals = nn.ModuleList(
            nn.Sequential(conv(widths[level + 1], widths[level], 1), make_norm(dims, norm, widths[level]), nn.ReLU())
            for level in steps
            if self.gated
        )
        self.gates = nn.ModuleList(
            CoarseAttentionGate(dims, widths[level], spec.strides[level + 1], kernel=kernels[level + 1], norm=norm)
            for level in steps
            if self.gated
        )
        scaled = self.options["logit_bn"] and norm == "batch"

        def head(width: int) -> nn.Module:
            logits = conv(width, spec.num_outputs, 1)
            return nn.Sequential(logits, make_norm(dims, norm, spec.num_outputs)) if scaled else logits

        self.heads = nn.ModuleList(
            head(width) for width in widths[: max(1, len(widths) - 1) if spec.deep_supervision else 1]
        )

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Take the options' levels and widths; levels beyond the plan's halve what its last one halves."""
        options = cls.read_options(spec)
        levels = options["levels"] or len(spec.features)
        base = options["base"] or max(1, round(WIDTHS[spec.dims] * spec.features[0] / USUAL_WIDTH))
        more = max(0, levels - len(spec.features))
        limit = base * 2**levels if options["paper_widths"] else MOST[spec.dims]
        options |= {"base": base, "levels": levels, "norm": options["norm"] or usual_norm(spec.dims)}
        return spec.model_copy(
            update={
                "strides": (*spec.strides, *spec.strides[-1:] * more)[:levels],
                "kernel_sizes": (*spec.kernel_sizes, *spec.kernel_sizes[-1:] * more)[:levels],
                "features": tuple(min(limit, base * 2**level) for level in range(levels)),
                "blocks_encoder": (2,) * levels,
                "blocks_decoder": (2,) * (levels - 1),
                "options": options,
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per level, high to low resolution, for x (B, C, *S)."""
        features = [self.encoder[0](x)]
        for pool, block in zip(self.pools, self.encoder[1:], strict=True):
            features.append(block(pool(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, everything = features[-1], self.training and self.spec.deep_supervision
        outputs = []
        for level in reversed(range(len(self.decoder))):
            skip = features[level]
            if self.gated:
                skip = self.gates[level](skip, self.signals[level](x))
            up = nn.functional.interpolate(x, size=skip.shape[2:], mode="nearest")
            x = self.decoder[level](torch.cat([up, skip], 1))
            if level and everything:
                outputs.append(self.heads[level](x))
        outputs.append(self.heads[0](x))
        return outputs[::-1] if everything else outputs[-1]


@register.architecture("unet")
class UNet(UNetVariant):
    """The UNet of the comparison, 2D and 3D: plain blocks, plain skips."""


@register.architecture("res_unet")
class ResUNet(UNetVariant):
    """Res-UNet, 2D and 3D: residual blocks, plain skips."""

    residual = True


@register.architecture("attention_unet")
class AttentionUNet(UNetVariant):
    """Attention UNet, 2D and 3D: plain blocks, gated skips."""

    gated = True


@register.architecture("att_res_unet")
class AttentionResUNet(UNetVariant):
    """Attention Res-UNet, 2D and 3D: residual blocks, gated skips."""

    residual = True
    gated = True


class ConvBlock(nn.Module):
    """Twice convolution, norm, ReLU; then dropout: x (B, before, *S) -> (B, after, *S)."""

    def __init__(self, before: int, after: int, kernel: tuple[int, ...], norm: str, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(*double_conv(before, after, kernel, norm), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.layers(x)


class ResidualBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm, dropout; plus the normalised projection of x; ReLU."""

    def __init__(self, before: int, after: int, kernel: tuple[int, ...], norm: str, dropout: float):
        super().__init__()
        dims = len(kernel)
        self.layers = nn.Sequential(
            *conv_norm(dims, before, after, kernel, norm),
            nn.ReLU(inplace=True),
            *conv_norm(dims, after, after, kernel, norm),
            nn.Dropout(dropout),
        )
        self.skip = nn.Sequential(*conv_norm(dims, before, after, (1,) * dims, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, *S) for x (B, before, *S)."""
        return torch.relu(self.layers(x) + self.skip(x))


def conv_norm(dims: int, before: int, after: int, kernel: tuple[int, ...], norm: str) -> list[nn.Module]:
    """Return a convolution that keeps the size, and its norm."""
    conv, _, _ = conv_classes(dims)
    return [conv(before, after, kernel, padding=tuple(edge // 2 for edge in kernel)), make_norm(dims, norm, after)]
