"""HiFormer. Source: Heidari et al. 2023, WACV, arXiv:2207.08518; written from the description, no code taken.

A ResNet and a Swin pyramid side by side: every ResNet level, projected, is added to the tokens of its Swin stage. The
finest and the coarsest level then meet in a double-level fusion: each has a summary token, which attends to the patch
tokens of the other before transformer layers mix it with its own. A light convolutional decoder gives the mask.

Taken from the plan: strides and kernels of at most three levels below the image. The first takes the plan's first two
strides (stem and max-pooling, published patches of 4) where the planned patch has 112 voxels on every axis that this
quarters; else there is no max-pooling. Windows are 7 where that divides the planned grid, else the greatest of 4 to 8
(2D) or 4 to 6 (3D) that does; else maps are padded, and the padding is hidden. The Swin width is 96 where the plan has
32 channels, else in proportion, in multiples of 12 as the heads ask for; all other widths follow it, and the fusion has
fewer heads where they would have fewer than 16 channels. 3D has basic blocks in its ResNet for every size. Position
tables have the planned size and are interpolated for other images. One output resolution: deep supervision changes
nothing.

Options: size ("s", "b", "l"), dlf ("active"; "released": as in the published code, where the fusion does not reach the
output and its weights are idle), width, max_tokens (4096: levels with more positions have keys and values averaged),
norm of the ResNet ("batch", published and the default in 2D; "instance", the default in 3D, where batches are small).
Published: SGD, learning rate 0.01, momentum 0.9 (not Nesterov's), weight decay 1e-4, loss 0.6 Dice (squared
denominators, background included) + 0.4 cross-entropy (its recipe, used unless others are given), with ResNet and Swin
weights from ImageNet: `train --pretrained FILE` takes either, or both from one file (width 96); without, all weights
are drawn.

Parameters in 2D at 224 with three channels, nine outputs, published and here: S 23 254 355, B 25 512 115, L 29 519 219.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from autoseg.architectures.blocks.class_attention import ClassAttention
from autoseg.architectures.blocks.classifier_weights import resnet_weights, swin_weights
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.gated_cross_attention import pooling
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.normalization import NORMS, usual_norm
from autoseg.architectures.blocks.patch_merging import PatchMerging
from autoseg.architectures.blocks.patch_strides import grids, patch_strides
from autoseg.architectures.blocks.resnet import BasicBlock, Bottleneck, ResNet
from autoseg.architectures.blocks.self_attention import TransformerLayer, common_heads
from autoseg.architectures.blocks.vit import fit_positions
from autoseg.architectures.blocks.window_attention import SwinStage
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register


class Size(NamedTuple):
    """A published size: the ResNet's block; depths, heads and perceptron ratios of fine and coarse branch."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int]
    heads: tuple[int, int]
    ratios: tuple[int, int]


SIZES = {
    "s": Size(BasicBlock, (1, 1), (3, 3), (1, 1)),
    "b": Size(Bottleneck, (1, 2), (6, 12), (2, 2)),
    "l": Size(BasicBlock, (1, 4), (6, 6), (4, 4)),
}
LEVELS = 3
WIDTH, WIDTH_STEP = 96, 12  # of Swin's first stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
CNN_DEPTHS = (3, 4, 6)
SWIN_DEPTHS, SWIN_HEADS = (2, 2, 6), (3, 6, 12)
DROP_PATH = 0.1  # of the last block; rises from 0
SMALLEST_JOINED = 112  # voxels of an axis that is quartered at once
WINDOWS = {2: (7, 8, 6, 5, 4), 3: (7, 6, 5, 4)}  # the first that divides the grid
PADDED_WINDOW = {2: 7, 3: 4}
HEAD_WIDTH = 16  # at least, of the fusion's heads
GROUP = 4  # channels per group of the decoder's norm


@register.architecture("hiformer")
class HiFormer(Architecture):
    """HiFormer, 2D and 3D: ResNet and Swin side by side, fused over two levels by summary tokens; sizes s, b, l."""

    defaults = {"size": "b", "dlf": "active", "width": None, "max_tokens": 4096, "norm": None}
    choices = {"size": tuple(SIZES), "dlf": ("active", "released"), "norm": (None, *NORMS)}
    recipe = {
        "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
        "dice_weight": 0.6, "cross_entropy_weight": 0.4, "dice_squared": True, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options, dims, size = self.options, spec.dims, SIZES[self.options["size"]]
        widths, strides, levels = spec.features[1:], spec.strides[1:], len(spec.features) - 1
        if not 2 <= levels <= LEVELS:
            raise UserError(
                f"hiformer needs 2 to {LEVELS} levels below the image, got {levels}", mend="plan larger patches"
            )
        conv, _, _ = conv_classes(dims)
        block = size.block if dims == 2 else BasicBlock
        cnn_widths = [round(width * 2 / 3) for width in widths]
        stem, pool = stem_strides(strides[0])
        self.cnn = ResNet(
            spec.in_channels, cnn_widths, CNN_DEPTHS[:levels], (stem, (1,) * dims, *strides[1:]), spec.kernel_sizes,
            block=block, norm=options["norm"] or usual_norm(dims), pool=pool,
        )  # fmt: skip
        self.project = nn.ModuleList(
            conv(before * block.expansion, width, 1) for before, width in zip(cnn_widths, widths, strict=True)
        )
        depths, shapes = SWIN_DEPTHS[:levels], grids(spec)[1:]
        rates = [DROP_PATH * number / (sum(depths) - 1) for number in range(sum(depths))]
        self.swin = nn.ModuleList(
            SwinStage(
                widths[s], depths[s], SWIN_HEADS[s], [window_for(edge, dims) for edge in shapes[s]],
                drop_path=rates[sum(depths[:s]) : sum(depths[: s + 1])], mask_padding=True,
            )
            for s in range(levels)
        )  # fmt: skip
        self.merge = nn.ModuleList(
            PatchMerging(widths[s], strides[s + 1], out=widths[s + 1]) for s in range(levels - 1)
        )
        ends = (0, -1)  # the finest and the coarsest level
        self.summary_norms = nn.ModuleList(nn.LayerNorm(widths[end]) for end in ends)
        self.shapes = [shapes[end] for end in ends]
        self.positions = nn.ParameterList(torch.empty(1, 1 + math.prod(shapes[end]), widths[end]) for end in ends)
        self.fusion = DoubleLevelFusion(widths[0], widths[-1], size, options["max_tokens"])
        self.norms = nn.ModuleList(nn.LayerNorm(widths[end]) for end in ends)
        self.decoder = Decoder(spec)
        self.apply(draw_linear)
        for table in self.positions:
            nn.init.trunc_normal_(table, std=0.02)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most three levels; widths double from the option's or from 96, scaled as the plan's."""
        options, share = cls.read_options(spec), spec.features[0] / USUAL_WIDTH
        width = options["width"] or WIDTH_STEP * max(1, round(WIDTH * share / WIDTH_STEP))
        options |= {"width": width, "norm": options["norm"] or usual_norm(spec.dims)}
        if width % WIDTH_STEP:
            raise UserError(f"width must be a multiple of {WIDTH_STEP}, got {width}", where="network.options.width")
        joins = len(spec.features) > LEVELS  # else there would be no second level
        sizes = patch_strides(spec, LEVELS, joins=joins, smallest=SMALLEST_JOINED)
        levels = len(sizes["strides"]) - 1
        update = {
            "features": (width, *(width * 2**level for level in range(levels))),
            "blocks_encoder": (1, *SWIN_DEPTHS[:levels]),
            "blocks_decoder": (1,) * levels,
            "options": options,
        }
        return spec.model_copy(update={**sizes, **update})

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a classifying ResNet-34 or -50, of a Swin-T, or of both, start the two pyramids."""
        return resnet_weights(weights, "cnn.") | swin_weights(weights, "swin.", "merge.") or weights

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the fused finest and coarsest level (B, F, *S / stride) for x (B, C, *S)."""
        tokens, levels = None, []
        for s, (project, found) in enumerate(zip(self.project, self.cnn(x), strict=True)):
            projected = project(found).movedim(1, -1)
            tokens = projected + self.swin[s](projected if tokens is None else self.merge[s - 1](tokens))
            levels.append(tokens)
        ends = (levels[0], levels[-1])
        sequences = [self._sequence(branch, level) for branch, level in enumerate(ends)]
        shapes = [level.shape[1:-1] for level in ends]
        if self.options["dlf"] == "active":
            sequences = self.fusion(sequences, shapes)
        return [
            norm(sequence)[:, 1:].mT.unflatten(2, shape)
            for norm, sequence, shape in zip(self.norms, sequences, shapes, strict=True)
        ]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        return self.decoder(*features)

    def _sequence(self, branch: int, level: Tensor) -> Tensor:
        """Return summary and patch tokens (B, 1 + N, C) with their positions for a level (B, *S, C)."""
        tokens = level.flatten(1, -2)
        summary = self.summary_norms[branch](tokens).mean(1, keepdim=True)
        positions = resize_positions(self.positions[branch], self.shapes[branch], level.shape[1:-1])
        return torch.cat([summary, tokens], 1) + positions


class DoubleLevelFusion(nn.Module):
    """Sequences (B, 1 + N, C) of both branches -> the same: summaries ask the other branch, then layers mix each."""

    def __init__(self, fine: int, coarse: int, size: Size, max_tokens: int):
        super().__init__()
        widths, self.max_tokens = (fine, coarse), max_tokens
        heads = [heads_for(width, number) for width, number in zip(widths, size.heads, strict=True)]
        self.there = nn.ModuleList(_change(widths[i], widths[1 - i]) for i in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(widths[1 - i]) for i in range(2))
        self.cross = nn.ModuleList(ClassAttention(widths[1 - i], heads[1 - i]) for i in range(2))
        self.back = nn.ModuleList(_change(widths[1 - i], widths[i]) for i in range(2))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                TransformerLayer(widths[i], heads[i], widths[i] * size.ratios[i]) for _ in range(size.depths[i])
            )
            for i in range(2)
        )

    def forward(self, sequences: list[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the fused sequences; `shapes` are the grids of their patch tokens."""
        fused = []
        for i, (own, other) in enumerate(zip(sequences, reversed(sequences), strict=True)):
            summary = self.there[i](own[:, :1])
            summary = summary + self.cross[i](self.norms[i](torch.cat([summary, other[:, 1:]], 1)))
            tokens = torch.cat([self.back[i](summary), own[:, 1:]], 1)
            factors = pooling(shapes[i], self.max_tokens)
            for layer in self.layers[i]:
                tokens = layer(tokens, Shorten(shapes[i], factors) if max(factors) > 1 else None)
            fused.append(tokens)
        return fused


class Shorten:
    """Averages the patch tokens of (B, 1 + N, C) over blocks of their grid; the first token stays."""

    def __init__(self, shape: Sequence[int], factors: Sequence[int]):
        self.shape, self.factors = tuple(shape), tuple(factors)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return (B, 1 + M, C)."""
        average = (nn.functional.avg_pool2d, nn.functional.avg_pool3d)[len(self.shape) - 2]
        pooled = average(tokens[:, 1:].mT.unflatten(2, self.shape), self.factors, ceil_mode=True)
        return torch.cat([tokens[:, :1], pooled.flatten(2).mT], 1)


class Decoder(nn.Module):
    """The finest and the coarsest map -> logits (B, K, *S): both to one width and resolution, added, enlarged."""

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        dims, widths, kernels = spec.dims, spec.features[1:], spec.kernel_sizes[1:]
        conv, _, _ = conv_classes(dims)
        width = GROUP * round(widths[0] / 3)
        thin = max(8, width // 8)
        self.strides, self.mode = spec.strides[1:], ("bilinear", "trilinear")[dims - 2]

        def unit(before: int, kernel: Sequence[int]) -> nn.Sequential:
            padding = tuple(edge // 2 for edge in kernel)
            layer = conv(before, width, tuple(kernel), padding=padding, bias=False)
            return nn.Sequential(layer, nn.GroupNorm(width // GROUP, width), nn.ReLU(inplace=True))

        self.fine = unit(widths[0], kernels[0])
        deeper = range(len(widths) - 1, 0, -1)
        self.coarse = nn.ModuleList(unit(widths[-1] if s == len(widths) - 1 else width, kernels[s]) for s in deeper)
        self.reduce = nn.Sequential(conv(width, thin, 1), nn.ReLU(inplace=True))
        edges = spec.kernel_sizes[0]
        self.head = conv(thin, spec.num_outputs, edges, padding=tuple(edge // 2 for edge in edges))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the logits."""
        for unit, stride in zip(self.coarse, reversed(self.strides[1:]), strict=True):
            coarse = self._enlarge(unit(coarse), stride)
        return self.head(self._enlarge(self.reduce(self.fine(fine) + coarse), self.strides[0]))

    def _enlarge(self, x: Tensor, stride: Sequence[int]) -> Tensor:
        size = [edge * step for edge, step in zip(x.shape[2:], stride, strict=True)]
        return nn.functional.interpolate(x, size=size, mode=self.mode, align_corners=False)


def stem_strides(stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the strides of stem and max-pooling that make the first level's; there is no pooling for 2."""
    if max(stride) <= 2:
        return tuple(stride), None
    pool = tuple(min(2, step) for step in stride)
    return tuple(step // half for step, half in zip(stride, pool, strict=True)), pool


def window_for(edge: int, dims: int) -> int:
    """Return the edge of windows for a planned grid's edge."""
    return next((window for window in WINDOWS[dims] if edge % window == 0), PADDED_WINDOW[dims])


def heads_for(width: int, heads: int) -> int:
    """Return `heads`, or fewer, so that they divide the width and have 16 channels each, as published at least."""
    return common_heads(width, min(heads, max(1, width // HEAD_WIDTH)))


def resize_positions(table: Tensor, planned: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return a table (1, 1 + N, C) for the planned grid interpolated to another grid; the first entry stays."""
    if tuple(planned) == tuple(shape):
        return table
    return torch.cat([table[:, :1], fit_positions(table[:, 1:], planned, shape)], 1)


def _change(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(before), nn.GELU(), nn.Linear(before, after))
