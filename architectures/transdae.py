"""TransDAE. Source: Azad et al. 2024, arXiv:2409.02018; written from the description, no code taken (none is public).

A U-shaped transformer whose blocks attend over space, with keys and values from a reduced map, and then over channels
by efficient attention. Skips pass an inter-scale interaction module: a large-kernel attention map, computed from both
sides, multiplies their fusion.

The paper's readable parts give the structure; widths, heads and the wiring of the skips are our completion, after
its closest relatives, so the count of parameters is ours, and the published Dice need not be met.

Taken from the plan: the strides of at most four stages. The first takes the plan's first two (patches of 4) where the
planned patch has 96 voxels on every axis that this quarters; axes of stride 1 have kernels of 1. Widths are 64, 128,
320, 512 where the plan has 32 channels, else in proportion, heads of at least 32 channels. Keys and values are reduced,
by powers of two, to at most 64 of the planned grid (8, 4, 2, 1 at 224). The skips' kernel of 21 (5, then 7 dilated by
3) is 11 (3, then 5 dilated by 2) along axes of less than 21 and 1 along an axis that the plan does not convolve yet.
No positions, so any image that is a multiple of the total stride can be predicted. 3D is the same network. One output
resolution: deep supervision changes nothing. Options: width (64), depths (2, 2, 2, 2), decoder_depth (2), reductions
(one number per stage; null: as above), large_kernels (false; true: 21 everywhere, which the count below has).

Recipe, used unless others are given: AdamW, learning rate 5e-4, weight decay 0.05, a warm-up of 5 % of the run,
gradient clip 1 (our choice; the paper's is not readable), loss 0.6 Dice + 0.4 cross-entropy (of its closest relatives;
the form of their Dice is not known here, so it is the engine's).
Parameters in 2D with one channel, nine outputs: 31 859 465, with large_kernels 31 872 265.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.efficient_attention import EfficientAttention
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.patch_merging import PatchExpanding
from autoseg.architectures.blocks.patch_strides import grids, patch_strides
from autoseg.architectures.blocks.reduced_attention import ReducedAttention, reduction_for
from autoseg.architectures.blocks.self_attention import common_heads
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

WIDTH = 64  # published, of the first grid
GROWTH = (1, 2, 5, 8)
HEADS = (1, 2, 5, 8)
HEAD_WIDTH = 32  # at least
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
FFN_RATIO = 4
MOST_KEYS = 64
SMALLEST_JOINED = 96  # voxels of an axis that is quartered at once
LARGE, SMALL = ((5, 1), (7, 3)), ((3, 1), (5, 2))  # kernel and dilation of the two convolutions on the skips
LARGE_FROM = 21


@register.architecture("transdae")
class TransDAE(Architecture):
    """TransDAE, 2D and 3D: a transformer U-Net with attention over space and over channels in every block."""

    defaults = {
        "width": None, "depths": [2, 2, 2, 2], "decoder_depth": 2, "reductions": None, "large_kernels": False,
    }  # fmt: skip
    choices = {"large_kernels": (False, True)}
    recipe = {
        "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05, "warmup_share": 0.05,
        "gradient_clip": 1.0, "dice_weight": 0.6, "cross_entropy_weight": 0.4,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        stages, widths, strides = len(spec.features) - 1, spec.features[1:], spec.strides[1:]
        if not 1 <= stages <= len(GROWTH):
            raise UserError(f"transdae has 1 to {len(GROWTH)} stages, got {stages}", where="network.features")
        conv, _, _ = conv_classes(spec.dims)
        up_depths = spec.blocks_decoder[::-1]
        found = (spec.in_channels, *widths)
        self.embeddings = nn.ModuleList(
            Embedding(found[stage], widths[stage], strides[stage], 3 if stage else 7) for stage in range(stages)
        )
        self.encoder = nn.ModuleList(self._blocks(stage, spec.blocks_encoder[stage + 1]) for stage in range(stages))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        ups = range(stages - 1)
        self.ups = nn.ModuleList(PatchExpanding(widths[s + 1], strides[s + 1], out=widths[s]) for s in ups)
        self.skips = nn.ModuleList(
            InterScaleInteraction(widths[s], interaction_kernels(spec, s, large=self.options["large_kernels"]))
            for s in ups
        )
        self.decoder = nn.ModuleList(self._blocks(s, up_depths[s + 1]) for s in ups)
        self.expand = PatchExpanding(widths[0], strides[0], out=widths[0])
        self.head = conv(widths[0], spec.num_outputs, 1)
        self.apply(_draw_weights)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths in proportion to the plan's, or the option's."""
        options = cls.read_options(spec)
        if len(spec.features) < 2:
            raise UserError("transdae needs at least two resolutions", mend="plan larger patches")
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        sizes = patch_strides(spec, len(GROWTH), smallest=SMALLEST_JOINED)
        stages = len(sizes["strides"]) - 1
        depths = [*options["depths"], *[options["depths"][-1]] * stages][:stages]
        if options["reductions"] is not None and len(options["reductions"]) < stages:
            raise UserError(f"{stages} stages need as many reductions", where="network.options.reductions")
        update = {
            "features": (width, *(width * factor for factor in GROWTH[:stages])),
            "blocks_encoder": (1, *depths),
            "blocks_decoder": (*[options["decoder_depth"]] * (stages - 1), 1),
            "options": {**options, "width": width},
        }
        return spec.model_copy(update={**sizes, **update})

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the normalised maps of all stages, high to low resolution, for x (B, C, *S)."""
        features = []
        for embed, blocks, norm in zip(self.embeddings, self.encoder, self.norms, strict=True):
            x = norm(blocks(embed(x))).movedim(-1, 1)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1].movedim(1, -1)
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x).movedim(-1, 1)
            x = self.decoder[level](self.skips[level](features[level], x).movedim(1, -1))
        return self.head(self.expand(x).movedim(-1, 1))

    def _blocks(self, stage: int, depth: int) -> nn.Sequential:
        width, kernel = self.spec.features[stage + 1], _kernel(self.spec, stage, 3)
        heads = common_heads(width, min(HEADS[stage], max(1, width // HEAD_WIDTH)))
        given = self.options["reductions"]
        grid = grids(self.spec)[stage + 1]
        reduction = reduction_for(grid, MOST_KEYS) if given is None else (given[stage],) * len(grid)
        return nn.Sequential(*(DualAttentionBlock(width, heads, reduction, kernel) for _ in range(depth)))


class Embedding(nn.Module):
    """Overlapping patches: a strided convolution and LayerNorm, x (B, a, *S) -> (B, *S / stride, b)."""

    def __init__(self, before: int, after: int, stride: tuple[int, ...], kernel: int):
        super().__init__()
        conv, _, _ = conv_classes(len(stride))
        edges = tuple(kernel if step > 1 else 1 for step in stride)
        self.conv = conv(before, after, edges, stride, tuple(edge // 2 for edge in edges))
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens on their grid."""
        return self.norm(self.conv(x).movedim(1, -1))


class DualAttentionBlock(nn.Module):
    """x (B, *S, C) -> (B, *S, C): attention over space, perceptron, attention over channels, perceptron, all added."""

    def __init__(self, width: int, heads: int, reduction: tuple[int, ...], kernel: tuple[int, ...]):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.space = ReducedAttention(width, heads, reduction)
        self.ffn1 = MixFFN(width, FFN_RATIO * width, kernel)
        self.channels = EfficientAttention(width)
        self.ffn2 = MixFFN(width, FFN_RATIO * width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the next block."""
        x = x + self.space(self.norms[0](x))
        x = x + self.ffn1(self.norms[1](x))
        x = x + self.channels(self.norms[2](x).flatten(1, -2)).view_as(x)
        return x + self.ffn2(self.norms[3](x))


class MixFFN(nn.Module):
    """A perceptron with a depth-wise convolution inside, added and normalised: (B, *S, C) -> (B, *S, C)."""

    def __init__(self, width: int, hidden: int, kernel: tuple[int, ...]):
        super().__init__()
        conv, _, _ = conv_classes(len(kernel))
        self.enter = nn.Linear(width, hidden)
        self.conv = conv(hidden, hidden, kernel, padding=tuple(edge // 2 for edge in kernel), groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron's output."""
        x = self.enter(x)
        return self.out(nn.functional.gelu(self.norm(self.conv(x.movedim(-1, 1)).movedim(1, -1) + x)))


class InterScaleInteraction(nn.Module):
    """encoder map e and decoder map g (B, C, *S) -> (B, C, *S): their fusion, and the fusion times its attention.

    `kernels` has kernel and dilation per axis of both depth-wise convolutions.
    """

    def __init__(self, width: int, kernels: list[tuple[tuple[int, ...], tuple[int, ...]]]):
        super().__init__()
        conv, _, _ = conv_classes(len(kernels[0][0]))
        self.fuse = conv(2 * width, width, 1)
        layers: list[nn.Module] = []
        for kernel, dilation in kernels:
            padding = tuple(step * (edge // 2) for edge, step in zip(kernel, dilation, strict=True))
            layers.append(conv(width, width, kernel, padding=padding, dilation=dilation, groups=width))
        self.attention = nn.Sequential(*layers, conv(width, width, 1))
        self.out = conv(width, width, 1)

    def forward(self, e: Tensor, g: Tensor) -> Tensor:
        """Return the joined map."""
        z = self.fuse(torch.cat([e, g], 1))
        return self.out(self.attention(z) * z) + z


def interaction_kernels(
    spec: NetworkSpec, stage: int, *, large: bool = False
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return kernel and dilation per axis of the two convolutions on the skip of a stage."""
    axes = []
    for edge, planned in zip(grids(spec)[stage + 1], spec.kernel_sizes[stage + 1], strict=True):
        axes.append(((1, 1), (1, 1)) if planned == 1 else LARGE if large or edge >= LARGE_FROM else SMALL)
    return [tuple(zip(*(axis[which] for axis in axes), strict=True)) for which in range(2)]


def _kernel(spec: NetworkSpec, stage: int, edge: int) -> tuple[int, ...]:
    return tuple(1 if planned == 1 else edge for planned in spec.kernel_sizes[stage + 1])


def _draw_weights(module: nn.Module) -> None:
    draw_linear(module)
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / out) ** 0.5)
        nn.init.zeros_(module.bias)
