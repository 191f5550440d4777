"""FMUNet, the later network of MIS-FM. Source: Wang et al., arXiv:2306.16925 (2023) and its follow-up of 2025; written
from the description, no code taken.

A U-Net of residual stages in pre-activation order (instance norm, LeakyReLU, convolution); the bottleneck has a second
stage before the way up, where a 1-convolution is interpolated linearly to the skip.

Taken from the plan: two to five resolutions and their strides, so a coarse axis keeps its size where the plan keeps it.
At the first two, convolutions do not mix along an axis that has not been pooled and is not pooled next (the authors'
resolution modes 0, 1 and 2). Widths are 32, 64, 128, 256, 512 where the plan's first stage has 32 channels, else in
proportion. 2D is the same network.

Options: widths, depth (2: convolutions of a stage), dropout (0.2, of the third and deeper resolutions).

Authors, as for `pct_net`: Adam, learning rate 1e-3 falling as a polynomial of power 0.8, weight decay 1e-5, loss
0.5 Dice (background included) + 0.5 cross-entropy (used unless others are given).
Parameters with one channel, two outputs, isotropic: published 47 332 680, here the same.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.patch_strides import resolution_kernels
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published widths are meant for
WIDTHS = (32, 64, 128, 256, 512)
UNDROPPED = 2  # resolutions without dropout
HEADS = 4  # resolutions with an output
SLOPE = 0.01
LINEAR = ("bilinear", "trilinear")


@register.architecture("fmunet")
class FMUNet(Architecture):
    """FMUNet, 3D and 2D: residual convolutions in pre-activation order, linear interpolation on the way up."""

    defaults = {"widths": None, "depth": 2, "dropout": 0.2}
    recipe = {
        "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-5, "annealing_power": 0.8, "dice_weight": 0.5,
        "cross_entropy_weight": 0.5, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, strides, kernels = spec.dims, spec.features, spec.strides, spec.kernel_sizes
        levels, depth = len(widths), self.options["depth"]
        if not 2 <= levels <= len(WIDTHS):
            raise UserError(f"fmunet has 2 to {len(WIDTHS)} resolutions, got {levels}", where="network.features")

        def stage(level: int) -> nn.Sequential:
            rate = self.options["dropout"] if level >= UNDROPPED else 0.0
            return nn.Sequential(*(ResidualConv(widths[level], kernels[level], rate) for _ in range(depth)))

        self.stem = conv_classes(dims)[0](spec.in_channels, widths[0], kernels[0], padding=same(kernels[0]))
        self.encoder = nn.ModuleList(stage(level) for level in range(levels))
        self.downs = nn.ModuleList(
            nn.Sequential(*unit(widths[level - 1], widths[level], kernels[level], strides[level]))
            for level in range(1, levels)
        )
        self.decoder = nn.ModuleList(stage(level) for level in range(levels))
        self.ups = nn.ModuleList(UpCat(widths[level + 1], widths[level], kernels[level]) for level in range(levels - 1))
        heads = min(HEADS, levels - 1) if spec.deep_supervision else 1
        self.heads = nn.ModuleList(
            nn.Sequential(*unit(widths[level], spec.num_outputs, kernels[level])) for level in range(heads)
        )

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep at most five resolutions; kernels follow from the strides, widths from the plan's first."""
        options = cls.read_options(spec)
        share, levels = spec.features[0] / USUAL_WIDTH, min(len(spec.features), len(WIDTHS))
        widths = options["widths"] or [max(1, round(width * share)) for width in WIDTHS]
        return spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": resolution_kernels(spec.strides[:levels]),
                "features": tuple(widths[:levels]),
                "blocks_encoder": (1,) * levels,
                "blocks_decoder": (1,) * (levels - 1),
                "options": {**options, "widths": list(widths)},
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per resolution, high to low, for x (B, C, *S)."""
        features = [self.encoder[0](self.stem(x))]
        for down, stage in zip(self.downs, self.encoder[1:], strict=True):
            features.append(stage(down(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = self.decoder[-1](features[-1]), []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.ups))):
            x = self.decoder[level](self.ups[level](x, features[level]))
            if level == 0 or (everything and level < len(self.heads)):
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]


class ResidualConv(nn.Module):
    """x (B, C, *S) plus the convolution of its normalised, activated form, with dropout before."""

    def __init__(self, width: int, kernel: tuple[int, ...], dropout: float):
        super().__init__()
        norm, activation, conv = unit(width, width, kernel)
        self.layers = nn.Sequential(norm, activation, nn.Dropout(dropout), conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.layers(x)


class UpCat(nn.Module):
    """The deep map (B, a, *S / stride) up to the skip (B, b, *S), both concatenated and convolved: (B, b, *S)."""

    def __init__(self, before: int, after: int, kernel: tuple[int, ...]):
        super().__init__()
        self.reduce = nn.Sequential(*unit(before, after, (1,) * len(kernel)))
        self.join = nn.Sequential(*unit(2 * after, after, kernel))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the joined map."""
        mode = LINEAR[skip.ndim - 4]
        x = nn.functional.interpolate(self.reduce(x), size=skip.shape[2:], mode=mode, align_corners=True)
        return self.join(torch.cat([skip, x], 1))


def unit(before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...] | int = 1) -> list[nn.Module]:
    """Return instance norm, LeakyReLU, convolution: (B, before, *S) -> (B, after, *S / stride)."""
    conv, _, norm = conv_classes(len(kernel))
    return [
        norm(before, affine=True),
        nn.LeakyReLU(SLOPE, inplace=True),
        conv(before, after, kernel, stride, same(kernel)),
    ]


def same(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the padding that keeps the size."""
    return tuple(edge // 2 for edge in kernel)
