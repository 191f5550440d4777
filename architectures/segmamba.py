"""SegMamba. Source: Xing et al. 2024, MICCAI, arXiv:2401.13560; written from the description, no code taken.

A UNETR-like network whose encoder mixes all voxels of a stage by three selective scans: forward, backward and across
slices. The published code is followed where the paper's text differs: the "gated" convolution adds.

Taken from the plan: the number of stages (the input resolution and at most four Mamba stages) and their strides, so a
coarse axis keeps its size where the plan keeps it, the stem's kernel is 3 instead of 7 there; the widths, by default
48 where the plan has 32 and doubled per stage; the slices of the third scan, counted on the feature map. 2D is an
extension: rows are the slices. The heads at lower resolution are an extension too, made only with deep supervision,
which the paper does not use.

Published: SGD, learning rate 0.01, momentum 0.99 (Nesterov's), weight decay 3e-5, a polynomial, gradient clip 12,
cross-entropy alone, every patch on foreground, no deep supervision: `--set own_recipe=published`. The default is the
engine's recipe, whose loss learns more in a short run.

Parameters with one channel, three outputs, without deep supervision: published 67.36 M, here 67 362 723.
"""

from __future__ import annotations

import math

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.mamba import MambaBranch
from autoseg.architectures.blocks.residual_conv import ResidualBlock, ResidualUpBlock
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

MAMBA_STAGES = 4
WIDTH = 48  # published, of the first two resolutions
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
LAYERS = 2  # of scans in every stage


@register.architecture("segmamba")
class SegMamba(Architecture):
    """SegMamba, 2D and 3D: convolutions and three-way selective scans down, residual convolutions up."""

    defaults = {"width": None}  # of the first two resolutions
    as_published = {
        "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5,
        "annealing": "polynomial", "annealing_power": 0.9, "gradient_clip": 12.0, "foreground_fraction": 1.0,
        "deep_supervision": False, "dice_weight": 0.0,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        conv, _, _ = conv_classes(spec.dims)
        widths = spec.features
        found = (spec.in_channels, *widths[:-1])  # channels of the maps that are refined: the image, the Mamba stages
        self.stages = nn.ModuleList(
            MambaStage(spec.dims, found[level - 1], found[level], spec.strides[level], stem=level == 1)
            for level in range(1, len(widths))
        )
        self.refine = nn.ModuleList(
            ResidualBlock(spec.dims, before, width) for before, width in zip(found, widths, strict=True)
        )
        self.ups = nn.ModuleList(
            ResidualUpBlock(spec.dims, widths[level + 1], widths[level], spec.strides[level + 1])
            for level in range(len(widths) - 1)
        )
        self.last = ResidualBlock(spec.dims, widths[0], widths[0])
        levels = max(1, len(widths) - 1) if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:levels])

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep at most five resolutions; widths double from `options["width"]` or from 48, scaled as the plan's are."""
        stages = min(len(spec.features), MAMBA_STAGES + 1)
        options = cls.read_options(spec)
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        return spec.model_copy(
            update={
                "strides": spec.strides[:stages],
                "kernel_sizes": ((3,) * spec.dims,) * stages,
                "features": tuple(width * 2**stage for stage in range(stages)),
                "blocks_encoder": (1, *[LAYERS] * (stages - 1)),
                "blocks_decoder": (1,) * (stages - 1),
                "options": {**options, "width": width},
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the refined skips (B, F, *S / stride), high to low resolution, for x (B, C, *S)."""
        maps, trunk = [x], x
        for stage in self.stages:
            trunk, skip = stage(trunk)
            maps.append(skip)
        return [refine(skip) for refine, skip in zip(self.refine, maps, strict=True)]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x, features[level])
            if level and everything:
                outputs.append(self.heads[level](x))
        outputs.append(self.heads[0](self.last(x)))
        return outputs[::-1] if everything else outputs[-1]


class MambaStage(nn.Module):
    """Down-sampling, gated spatial convolution, scans: x -> the trunk and the skip, both (B, after, *S / stride)."""

    def __init__(self, dims: int, before: int, after: int, stride: tuple[int, ...], *, stem: bool):
        super().__init__()
        conv, _, norm = conv_classes(dims)
        if stem:
            kernel = tuple(7 if step > 1 else 3 for step in stride)
            self.down = conv(before, after, kernel, stride, padding=tuple(edge // 2 for edge in kernel))
        else:
            self.down = nn.Sequential(norm(before), conv(before, after, stride, stride))
        self.gsc = GatedSpatialConv(dims, after)
        self.layers = nn.ModuleList(TriOrientedLayer(after) for _ in range(LAYERS))
        self.skip = nn.Sequential(norm(after), conv(after, 2 * after, 1), nn.GELU(), conv(2 * after, after, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return trunk and skip."""
        x = self.gsc(self.down(x))
        for layer in self.layers:
            x = layer(x)
        return x, self.skip(x)


class GatedSpatialConv(nn.Module):
    """The convolutions before the scans, added to x (B, C, *S)."""

    def __init__(self, dims: int, width: int):
        super().__init__()
        conv, _, norm = conv_classes(dims)

        def unit(kernel: int) -> list[nn.Module]:
            return [conv(width, width, kernel, padding=kernel // 2), norm(width), nn.ReLU(inplace=True)]

        self.wide = nn.Sequential(*unit(3), *unit(3))
        self.narrow = nn.Sequential(*unit(1))
        self.join = nn.Sequential(*unit(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x and its convolved form, added."""
        return x + self.join(self.wide(x) + self.narrow(x))


class TriOrientedLayer(nn.Module):
    """x (B, C, *S) plus the three scans of its normalised voxels, row-major; slices are entries of the first axis."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = TriOrientedMamba(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        tokens = self.norm(x.flatten(2).mT)
        return x + self.mamba(tokens, x.shape[2]).mT.unflatten(2, x.shape[2:])


class TriOrientedMamba(nn.Module):
    """Mamba with three scans that share the projections in and out: tokens (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int):
        super().__init__()
        inner = 2 * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.forward_scan, self.backward_scan, self.slice_scan = (
            MambaBranch(inner, math.ceil(width / 16)) for _ in range(3)
        )
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, slices: int) -> Tensor:
        """Return the mixed tokens; `slices` divides L and says how many equal runs the third scan interleaves."""
        x, z = self.in_proj(tokens).chunk(2, -1)
        y = self.forward_scan(x, z)
        y = y + self.backward_scan(x.flip(1), z.flip(1)).flip(1)
        y = y + separate(self.slice_scan(interleave(x, slices), interleave(z, slices)), slices)
        return self.out_proj(y)


def interleave(tokens: Tensor, slices: int) -> Tensor:
    """Return (B, L, d) in the order that puts the same position of all slices next to each other."""
    return tokens.unflatten(1, (slices, -1)).transpose(1, 2).flatten(1, 2)


def separate(tokens: Tensor, slices: int) -> Tensor:
    """Undo `interleave`."""
    return tokens.unflatten(1, (-1, slices)).transpose(1, 2).flatten(1, 2)
