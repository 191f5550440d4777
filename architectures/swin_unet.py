"""Swin-U-Net of VIS-MAE. Source: Liu et al. 2024, VISION-MAE, arXiv:2402.01034, after Cao et al. 2021, Swin-Unet,
arXiv:2105.05537; written from the description, no code taken.

A U-Net of shifted-window transformers only: tokens of 4 voxels per axis, patch merging down, patch expanding up, the
inputs of the encoder's stages as skips, one fourfold expansion to the voxels. Encoder, decoder and expansions have the
names and shapes of the Swin masked autoencoder, whose weights it starts from.

Taken from the plan: at most six resolutions and their strides. The tokens take the first two poolings (only the first
where the plan has three resolutions or fewer), every further one is a merging, so there are at most four stages and a
coarse axis keeps its size where the plan keeps it. The width is 96 where the plan's first stage has 32 channels, else
in proportion, in multiples of 12. Windows shrink to small maps, other maps are padded. One output resolution: deep
supervision changes nothing. 3D is an extension: the same layers with one axis more.

Options: width, depths (2, 2, 6, 2 as released; 2, 2, 2, 2 is the autoencoder's and takes over all of its weights),
heads (3, 6, 12, 24), window (7), drop_path (0.1, of the last block).

Authors: AdamW, learning rate 1e-3, betas 0.9 and 0.95, weight decay 0.05, 40 of 150 epochs warm-up, cosine, loss Dice
as TransUNet's (squared denominators, background included) + cross-entropy, of equal weight from memory (used unless
others are given), batch 32.
Parameters with three channels and outputs, 2D: published 41 378 724, here the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.patch_merging import PatchExpanding, PatchMerging
from autoseg.architectures.blocks.window_attention import SwinStage
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

WIDTH, WIDTH_STEP = 96, 12
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is meant for
MOST = 6  # resolutions: the voxels, one that is skipped, four stages
EPSILON = 1e-6


@register.architecture("swin_unet")
class SwinUNet(Architecture):
    """Swin-U-Net, 2D and 3D: shifted-window transformers down and up, with skips; pretrained by Swin MAE."""

    defaults = {
        "width": None, "depths": [2, 2, 6, 2], "heads": [3, 6, 12, 24], "window": 7, "drop_path": 0.1,
    }  # fmt: skip
    recipe = {
        "optimizer": "adamw", "learning_rate": 1e-3, "beta2": 0.95, "weight_decay": 0.05, "warmup_share": 0.267,
        "annealing": "cosine", "dice_squared": True, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        if not 2 <= len(spec.features) <= MOST:
            raise UserError(
                f"swin_unet has 2 to {MOST} resolutions, got {len(spec.features)}", where="network.features"
            )
        options, dims = self.options, spec.dims
        conv, _, _ = conv_classes(dims)
        patch, merges = token_strides(spec)
        stages = len(merges) + 1
        widths = spec.features[-stages:]
        depths, heads, window = options["depths"][:stages], options["heads"][:stages], (options["window"],) * dims
        rates = [options["drop_path"] * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        rates = [rates[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(stages)]

        def make(stage: int) -> Stage:
            return Stage(widths[stage], depths[stage], heads[stage], window, drop_path=rates[stage], eps=EPSILON)

        self.patch_embed = PatchEmbed(conv(spec.in_channels, widths[0], patch, patch), widths[0])
        self.layers = nn.ModuleList(make(stage) for stage in range(stages))
        up = list(reversed(range(stages - 1)))
        self.layers_up = nn.ModuleList(make(stage) for stage in up)
        for stage, stride in enumerate(merges):
            self.layers[stage].downsample = PatchMerging(widths[stage], stride, out=widths[stage + 1], eps=EPSILON)
        for layer, stage in zip(self.layers_up[:-1], up, strict=False):
            layer.upsample = PatchExpanding(widths[stage], merges[stage - 1], eps=EPSILON)
        if merges:
            self.first_patch_expanding = PatchExpanding(widths[-1], merges[-1], eps=EPSILON)
        self.skips = nn.ModuleList(conv(2 * widths[stage], widths[stage], 1) for stage in up)
        self.norm_up = nn.LayerNorm(widths[0], eps=EPSILON)
        self.final_patch_expanding = PatchExpanding(widths[0], patch, out=widths[0], eps=EPSILON)
        self.head = conv(widths[0], spec.num_outputs, 1, bias=False)
        self.apply(draw_linear)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep at most six resolutions; widths double per stage from `options["width"]` or from 96, scaled."""
        options = cls.read_options(spec)
        levels = min(len(spec.features), MOST)
        share = spec.features[0] / USUAL_WIDTH
        width = options["width"] or WIDTH_STEP * max(1, round(WIDTH * share / WIDTH_STEP))
        spec = spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": ((3,) * spec.dims,) * levels,
                "features": (width,) * levels,
                "blocks_encoder": (1,) * levels,
                "blocks_decoder": (1,) * (levels - 1),
                "options": {**options, "width": width},
            }
        )
        first = levels - len(token_strides(spec)[1]) - 1  # the level of the tokens
        return spec.model_copy(
            update={"features": tuple(width * 2 ** max(0, level - first) for level in range(levels))}
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the inputs of the stages (B, F, *S / stride) but for the last, whose output it is."""
        tokens = self.patch_embed(x)
        features = []
        for layer in self.layers:
            features.append(tokens)
            tokens = layer(tokens)
        return [tokens.movedim(-1, 1) for tokens in (*features[:-1], tokens)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        tokens = features[-1].movedim(1, -1)
        if self.layers_up:
            tokens = self.first_patch_expanding(tokens)
        for layer, join, skip in zip(self.layers_up, self.skips, reversed(features[:-1]), strict=True):
            tokens = layer(join(torch.cat([tokens.movedim(-1, 1), skip], 1)).movedim(1, -1))
        return self.head(self.final_patch_expanding(self.norm_up(tokens)).movedim(-1, 1))


class PatchEmbed(nn.Module):
    """x (B, C, *S) -> tokens (B, *S / patch, F): one token per patch, normalised."""

    def __init__(self, proj: nn.Module, width: int):
        super().__init__()
        self.proj = proj
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        return self.norm(self.proj(x).movedim(1, -1))


class Stage(SwinStage):
    """Shifted-window blocks, then patch merging or patch expanding, where the network has set one."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.downsample = self.upsample = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of the next stage."""
        x = super().forward(x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


def token_strides(spec: NetworkSpec) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the voxels of a token per axis, and the strides of the mergings."""
    first = 3 if len(spec.strides) > 3 else 2
    return tuple(math.prod(axis) for axis in zip(*spec.strides[:first], strict=True)), list(spec.strides[first:])
