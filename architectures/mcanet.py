"""MCANet. Source: Shao et al. 2023, arXiv:2312.08866; written from the description, no code taken.

SegNeXt's convolutional encoder MSCAN (Guo et al. 2022, arXiv:2209.08575) and a light head that brings all maps to the
first one's size and mixes them by multi-scale cross-axis attention: rows attend to rows and columns to columns, fed by
strip convolutions, each with the queries of the other. One output, at a quarter of the resolution, is interpolated.

Taken from the plan: the strides of up to four stages; the first takes the plan's first two strides (published: 4) where
the patch has 64 voxels there, and stages of fewer than 4 voxels along an axis that they stride are left out. The width
is the size's where the plan has nnU-Net's 32 channels, else in proportion. Images of other sizes can be predicted.
Options: size ("T", default, "S", "B"), width (channels of the first stage), norm ("batch", published and the default in
2D; "instance", the default in 3D, where batches are small; the head has group norms), drop_path (0.1), dropout (0.1).

3D is the description's extension: strips and attention along every axis, but one that the plan leaves alone at first;
an axis is fed by the strips along the next one, in 2D as published, and takes the sum of the others as queries.
Left out: temperatures that nothing uses (8 parameters). The encoder of SegNeXt, pretrained on ImageNet, starts ours:
`train --pretrained FILE` (2D); without, all weights are drawn. Recipe, used unless others are given: AdamW, 5e-4 for
random weights, 6e-5 for pretrained ones, ten times that for the head (in full runs), weight decay 0.01 but on norms, a
warm-up of 1 500 of 80 000 steps, then a line to half the rate, where the authors stop. Their loss, cross-entropy alone,
has `--set own_recipe=published`.
Parameters with three channels, one output: published T 4 047 401, here 4 047 393.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from autoseg.architectures.blocks.channel_norm import ChannelNorm
from autoseg.architectures.blocks.classifier_weights import mscan_weights
from autoseg.architectures.blocks.depthwise_conv import depthwise
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.mscan import STRIPS, Block, downsample, stem, strip
from autoseg.architectures.blocks.normalization import NORMS, norm_parameters, usual_norm
from autoseg.architectures.blocks.patch_strides import grids, patch_strides
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

LARGE = 64  # voxels of an axis whose first stage may stride by 4
SMALLEST = 4  # voxels along an axis of the last stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the sizes are meant for
GROWTH = (1, 2, 5, 8)  # of the widths
RATIOS = (8, 8, 4, 4)  # of the perceptrons' hidden layers
HEADS, GROUPS = 8, 32
PRETRAINED_RATE = 6e-5  # published learning rate of a pretrained encoder
HEAD_FACTOR = 10.0  # of the head's learning rate
MODES = {2: "bilinear", 3: "trilinear"}


class Size(NamedTuple):
    """A published size: blocks per stage, channels of the first stage."""

    depths: tuple[int, int, int, int]
    width: int


SIZES = {"T": Size((3, 3, 5, 2), 32), "S": Size((2, 2, 4, 2), 64), "B": Size((3, 3, 12, 3), 64)}


@register.architecture("mcanet")
class MCANet(Architecture):
    """MCANet, 2D and 3D: a convolutional encoder and a head of multi-scale cross-axis attention, sizes T, S, B."""

    defaults = {"size": "T", "width": None, "norm": None, "drop_path": 0.1, "dropout": 0.1}
    choices = {"size": tuple(SIZES), "norm": (None, *NORMS)}
    recipe = {
        "optimizer": "adamw", "learning_rate": 5e-4, "own_rates": True, "weight_decay": 0.01, "own_decay": True,
        "warmup_share": 0.01875, "annealing_power": 1.0, "final_rate": 0.5,
    }  # fmt: skip
    as_published = {"dice_weight": 0.0}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        if len(spec.features) < 3:
            raise UserError("mcanet needs at least three resolutions", mend="plan larger patches")
        dims, widths, depths = spec.dims, spec.features[1:], spec.blocks_encoder[1:]
        norm, axes = self.options["norm"] or usual_norm(dims), mixed_axes(spec)
        rates = [float(self.options["drop_path"]) * n / max(1, sum(depths) - 1) for n in range(sum(depths))]
        self.stages = nn.ModuleList()
        for stage, (width, depth, stride) in enumerate(zip(widths, depths, spec.strides[1:], strict=True)):
            before = widths[stage - 1] if stage else spec.in_channels
            down = stem(before, width, stride, norm) if stage == 0 else downsample(before, width, stride, norm)
            done = sum(depths[:stage])
            blocks = (Block(dims, width, RATIOS[stage], axes, norm, rates[done + number]) for number in range(depth))
            self.stages.append(nn.Sequential(down, *blocks, ChannelNorm(width, eps=1e-5)))
        self.stages.apply(_draw_weights)
        self.head = Head(dims, widths, spec.num_outputs, axes, float(self.options["dropout"]))

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths and depths are the size's, widths scaled as the plan's are."""
        options = cls.read_options(spec)
        size = SIZES[options["size"]]
        width = options["width"] or 2 * max(1, round(size.width * spec.features[0] / USUAL_WIDTH / 2))
        joins = len(spec.features) > 3  # else there would be no second stage
        found = spec.model_copy(update=patch_strides(spec, len(GROWTH), joins=joins, smallest=LARGE))
        stages = len(found.strides) - 1
        while stages > 2 and _too_small(grids(found)[stages], found.strides[stages]):
            stages -= 1
        update = {
            "strides": found.strides[: stages + 1],
            "kernel_sizes": ((3,) * spec.dims,) * (stages + 1),
            "features": (width // 2, *(width * factor for factor in GROWTH[:stages])),
            "blocks_encoder": (1, *size.depths[:stages]),
            "blocks_decoder": (1,) * stages,
            "options": {**options, "width": width, "norm": options["norm"] or usual_norm(spec.dims)},
        }
        return spec.model_copy(update=update)

    def rate_factors(self, *, pretrained: bool) -> dict[str, float]:
        """Return those of encoder and head: published are 6e-5 for pretrained weights, and ten times that."""
        encoder = PRETRAINED_RATE / self.recipe["learning_rate"] if pretrained else 1.0
        return {"stages.": encoder, "head.": HEAD_FACTOR * encoder}

    def undecayed(self) -> set[str]:
        """Return the scales and shifts of all norms."""
        return norm_parameters(self)

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of SegNeXt's MSCAN are the encoder's."""
        return mscan_weights(weights, self.spec.dims) or weights

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per stage, high to low resolution, for x (B, C, *S)."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        logits = self.head(features)
        size = tuple(edge * step for edge, step in zip(logits.shape[2:], self.spec.strides[1], strict=True))
        return nn.functional.interpolate(logits, size=size, mode=MODES[self.spec.dims])


def mixed_axes(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the axes that strips and attention run along: in 3D not a coarse one, if two others remain."""
    everything = tuple(range(spec.dims))
    fine = tuple(axis for axis in everything if spec.strides[1][axis] == max(spec.strides[1]))
    return fine if len(fine) > 1 else everything


class CrossAxisAttention(nn.Module):
    """x (B, C, *S) plus attention along every axis of `axes`, each with the queries of the others.

    The tokens of an axis are its positions, with all other axes and the head's channels as features. Keys and values of
    an axis come from strips along the next one. Queries and keys have length 1, so products are cosines.
    """

    def __init__(self, dims: int, width: int, heads: int, axes: Sequence[int]):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.heads, self.axes = heads, tuple(axes)
        self.norm = ChannelNorm(width, eps=1e-5)
        self.strips = nn.ModuleList(
            nn.ModuleList(depthwise(width, strip(dims, along, length)) for length in STRIPS)
            for along in (*self.axes[1:], self.axes[0])
        )
        self.project = conv(width, width, 1)  # shared by all axes, before and after the attention

    def sources(self, x: Tensor) -> list[Tensor]:
        """Return keys and values (B, C, *S) of every axis."""
        normed = self.norm(x)
        return [self.project(sum(layer(normed) for layer in layers)) for layers in self.strips]

    def tokens(self, source: Tensor, axis: int) -> Tensor:
        """Return (B, heads, positions on the axis, features)."""
        return source.unflatten(1, (self.heads, -1)).movedim(3 + axis, 2).flatten(3)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Return softmax over keys of the products of normalised tokens."""
        return (query @ key.mT).softmax(-1)

    def attend(self, query: Tensor, own: Tensor, axis: int) -> Tensor:
        """Return the values weighted, plus the normalised queries, as a map (B, C, *S)."""
        value = self.tokens(own, axis)
        query, key = (nn.functional.normalize(self.tokens(t, axis), dim=-1) for t in (query, own))
        mixed = self.weights(query, key) @ value + query
        others = [edge for number, edge in enumerate(own.shape[2:]) if number != axis]
        return mixed.unflatten(3, (-1, *others)).movedim(2, 3 + axis).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        sources, total = self.sources(x), x
        for number, axis in enumerate(self.axes):
            query = sum(source for other, source in enumerate(sources) if other != number)
            total = total + self.project(self.attend(query, sources[number], axis))
        return total


class Head(nn.Module):
    """The maps of all stages (B, F, *S) -> logits of the first one's size."""

    def __init__(self, dims: int, widths: Sequence[int], outputs: int, axes: Sequence[int], dropout: float):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        first, inner, last = widths[0], widths[1], widths[-1]
        heads = next(heads for heads in range(HEADS, 0, -1) if inner % heads == 0)
        self.squeeze = nn.Sequential(conv(sum(widths[1:]), inner, 1, bias=False), *_group_norm(inner))
        self.attention = CrossAxisAttention(dims, inner, heads, axes)
        self.refine = nn.Sequential(*_separable(dims, inner + first, last), *_separable(dims, last, last))
        self.align = nn.Sequential(conv(last, first, 1, bias=False), *_group_norm(first))
        self.dropout = (nn.Dropout2d, nn.Dropout3d)[dims - 2](dropout)
        self.out = conv(first, outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the logits."""
        first, *others = features
        size, mode = first.shape[2:], MODES[first.ndim - 2]
        resized = [nn.functional.interpolate(x, size=size, mode=mode) for x in others]
        y = self.attention(self.squeeze(torch.cat(resized, 1)))
        y = self.align(self.refine(torch.cat([y, first], 1)))
        return self.out(self.dropout(y))


def _separable(dims: int, before: int, after: int) -> list[nn.Module]:
    conv, _, _ = conv_classes(dims)
    near = depthwise(before, (3,) * dims, bias=False)
    return [near, *_group_norm(before), conv(before, after, 1, bias=False), *_group_norm(after)]


def _group_norm(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(GROUPS, width), width), nn.ReLU(inplace=True)]


def _too_small(grid: Sequence[int], stride: Sequence[int]) -> bool:
    return any(step > 1 and edge < SMALLEST for edge, step in zip(grid, stride, strict=True))


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
