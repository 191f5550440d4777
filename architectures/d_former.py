"""D-Former. Source: Wu et al. 2022, Neural Computing and Applications, arXiv:2201.00462; no code taken.

A transformer U-Net whose blocks attend in turn within local boxes of tokens and among tokens spread evenly over the
whole map, at the same cost. A depthwise convolution at the start of every stage tells positions; there is no other
embedding or bias. Skips are the inputs of the encoder's stages.

Taken from the plan: the strides of at most four stages: the patch that becomes a token (published: 2x4x4) takes the
plan's first two strides where that leaves four stages, else its first; further strides are the mergings, so a coarse
axis keeps its size where the plan keeps it. The width is 96 where the plan's first stage has 32 channels, else in
proportion, and doubles per stage; a head has 32 channels. Groups shrink to small maps, and any image that is a multiple
of the total stride can be predicted. 2D is the same network without the first axis. With deep supervision every stage
of the decoder has a head, weighted 4, 2, 1.

Options: width, token_size, depths (2, 2, 6, 2), group (2, 8, 8; in 2D 8, 8), drop_path (0).

Deviations, where the released code fails on some sizes: maps are padded to multiples of the group; a map is one group
where all axes within slices are shorter than the group's (released: where the height is). Linear layers are drawn from
a truncated normal.
Published optimiser: nnU-Net's SGD, as the engine's default.

Parameters in 3D with one channel, 14 outputs: published 44.26 M, here 44 353 344 without heads, 50 557 248 with three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dilated_attention import DilatedStage
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.patch_merging import PatchExpanding, PatchMerging
from autoseg.architectures.blocks.patch_strides import strides_from_patch
from autoseg.architectures.blocks.self_attention import common_heads
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

STAGES = 4
WIDTH = 96  # published, of the first stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
HEAD_WIDTH = 32
GROUP = (2, 8, 8)


@register.architecture("d_former")
class DFormer(Architecture):
    """D-Former, 3D and 2D: a U-Net of local and dilated attention."""

    defaults = {"width": None, "token_size": None, "depths": [2, 2, 6, 2], "group": None, "drop_path": 0.0}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, strides = spec.dims, spec.features[1:], spec.strides[1:]
        stages, depths = len(widths), spec.blocks_encoder[1:]
        if not 1 <= stages <= STAGES:
            raise UserError(f"d_former has 1 to {STAGES} stages, got {stages}", where="network.features")
        group, conv = read_group(spec, self.options["group"]), conv_classes(dims)[0]
        drop_path = self.options["drop_path"]
        self.embed = conv(spec.in_channels, widths[0], strides[0], strides[0])
        self.embed_norm = nn.LayerNorm(widths[0])
        self.encoder = nn.ModuleList(Stage(widths[s], depths[s], group, drop_path) for s in range(stages))
        self.merges = nn.ModuleList(
            PatchMerging(widths[s], strides[s + 1], order="last_fastest") for s in range(stages - 1)
        )
        self.bottom_norm = nn.LayerNorm(widths[-1])
        ups = range(stages - 1)  # of the decoder, from the highest resolution
        self.expands = nn.ModuleList(PatchExpanding(widths[s + 1], strides[s + 1], out=widths[s]) for s in ups)
        self.joins = nn.ModuleList(nn.Linear(2 * widths[s], widths[s]) for s in ups)
        self.decoder = nn.ModuleList(Stage(widths[s], depths[s], group, drop_path) for s in ups)
        self.last_norm = nn.LayerNorm(widths[0]) if stages > 1 else nn.Identity()
        heads = max(1, stages - 1) if spec.deep_supervision else 1
        self.heads = nn.ModuleList(Head(width, strides[0], spec.num_outputs) for width in widths[:heads])
        self.apply(draw_linear)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths double from the option's or from 96, scaled as the plan's."""
        options = cls.read_options(spec)
        if len(spec.features) < 2:
            raise UserError("d_former needs at least two resolutions", mend="plan larger patches")
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        token = options["token_size"] or (spec.strides[1] if len(spec.strides) < STAGES + 2 else None)
        sizes = strides_from_patch(spec, STAGES, token)
        stages, depths = len(sizes["strides"]) - 1, options["depths"]
        if len(depths) < stages:
            raise UserError(f"depths must have {stages} entries, got {depths}", where="network.options")
        group = list(read_group(spec, options["group"]))
        update = {
            "features": (width, *(width * 2**stage for stage in range(stages))),
            "blocks_encoder": (1, *depths[:stages]),
            "blocks_decoder": (*reversed(depths[: stages - 1]), 1),
            "options": {**options, "width": width, "token_size": list(sizes["strides"][1]), "group": group},
        }
        return spec.model_copy(update={**sizes, **update})

    def output_weights(self) -> list[float]:
        """Return weights halved from one output to the next; the last one counts, too."""
        weights = [0.5**output for output in range(len(self.heads))]
        return [weight / sum(weights) for weight in weights]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return what every stage but the last gets, and the last's output, for x (B, C, *S), channel-first."""
        x, maps = self.embed_norm(self.embed(x).movedim(1, -1)), []
        for stage, merge in zip(self.encoder, self.merges, strict=False):
            maps.append(x)
            x = merge(stage(x))
        maps.append(self.bottom_norm(self.encoder[-1](x)))
        return [found.movedim(-1, 1) for found in maps]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        *skips, x = (feature.movedim(1, -1) for feature in features)
        everything, outputs = self.training and self.spec.deep_supervision, []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](self.joins[level](torch.cat([self.expands[level](x), skips[level]], -1)))
            if level and everything:
                outputs.append(self.heads[level](x))
        outputs.append(self.heads[0](self.last_norm(x)))
        return outputs[::-1] if everything else outputs[-1]


class Stage(nn.Module):
    """Position encoding by a depthwise 3-convolution, added, then blocks: x (B, *S, C) -> (B, *S, C)."""

    def __init__(self, width: int, depth: int, group: tuple[int, ...], drop_path: float):
        super().__init__()
        self.position = conv_classes(len(group))[0](width, width, 3, padding=1, groups=width)
        heads = common_heads(width, max(1, width // HEAD_WIDTH))
        self.blocks = DilatedStage(width, depth, heads, group, drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        return self.blocks(x + self.position(x.movedim(-1, 1)).movedim(1, -1))


class Head(nn.Module):
    """x (B, *S, C) -> logits (B, K, *S * stride): every token becomes its patch, LayerNorm, 1-convolution."""

    def __init__(self, width: int, stride: tuple[int, ...], outputs: int):
        super().__init__()
        self.expand = PatchExpanding(width, stride, out=width)
        self.conv = conv_classes(len(stride))[0](width, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.conv(self.expand(x).movedim(-1, 1))


def read_group(spec: NetworkSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the tokens of a group per axis."""
    group = tuple(GROUP[-spec.dims :] if given is None else (int(edge) for edge in given))
    if len(group) != spec.dims or min(group) < 1:
        raise UserError(f"group must have {spec.dims} positive entries, got {given}", where="network.options")
    return group
