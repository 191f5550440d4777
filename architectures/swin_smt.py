"""Swin SMT. Source: Plotka et al. 2024, MICCAI, arXiv:2407.07514; written from the description, no code taken.

Swin UNETR whose perceptrons are, in the last stages, soft mixtures of experts over all tokens of the map: windows see
near tokens, the mixture far ones. The convolutional decoder is Swin UNETR's.

Taken from the plan: the number of resolutions (at most six, at least three) and the strides; the first is the patch
embedding, the others the mergings, so a coarse axis keeps its size where the plan keeps it. The feature size is 48
where the plan's first stage has 32 channels, else in proportion, in multiples of 12 as the heads ask for; it doubles
per stage. Windows shrink to small maps. The experts are 32, in the same proportion. One output resolution: deep
supervision changes nothing. 2D is the same network.

Options: feature_size, depths (2, 2, 2, 2), heads (3, 6, 12, 24), window (7), experts (32 published, 4 is cheap),
moe_layers (3: how many stages, counted from the end, have experts), residual_stages (false; true: a residual block at
the entry of every stage, "v2"), merging ("swin_unetr": with its quirk; "all": all neighbours).

Swin UNETR's weights, or those of its pretrained encoder, start all but the mixtures: `train --pretrained FILE`.
Published, from memory: AdamW, learning rate 1e-4, weight decay 1e-5, cosine (its recipe, used unless others are given),
with a warm-up whose length is not known here; there is none. Deviations: every kernel is 3, on coarse axes too; where a
window is shrunk, its bias keeps the rows of its offsets (the published code counts rows anew).
Parameters with one channel, 118 outputs: published 170.78 M, here 170 783 560; without experts and with residual
stages: published 72.76 M, here 72 767 752.
"""

from __future__ import annotations

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.patch_merging import PatchMerging
from autoseg.architectures.blocks.residual_conv import ResidualBlock, ResidualUpBlock
from autoseg.architectures.blocks.soft_moe import SoftMoE
from autoseg.architectures.blocks.swin_unetr_weights import is_swin_unetr, translate
from autoseg.architectures.blocks.window_attention import SwinBlock
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

FEATURE_SIZE, FEATURE_STEP = 48, 12
EXPERTS = 32
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published sizes are meant for
LEAST, MOST = 3, 6  # resolutions
MERGING = {"swin_unetr": "swin_unetr", "all": "last_fastest"}  # orders of the neighbours


@register.architecture("swin_smt")
class SwinSMT(Architecture):
    """Swin SMT, 3D and 2D: shifted windows and soft mixtures of experts down, residual convolutions up."""

    defaults = {
        "feature_size": None, "depths": [2, 2, 2, 2], "heads": [3, 6, 12, 24], "window": 7, "experts": None,
        "moe_layers": 3, "residual_stages": False, "merging": "swin_unetr",
    }  # fmt: skip
    choices = {"residual_stages": (False, True), "merging": tuple(MERGING)}
    recipe = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 1e-5, "annealing": "cosine"}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        widths, strides, dims = spec.features, spec.strides, spec.dims
        levels = len(widths)
        if not LEAST <= levels <= MOST:
            raise UserError(f"swin_smt has {LEAST} to {MOST} resolutions, got {levels}", where="network.features")
        conv, _, _ = conv_classes(dims)
        options = {**self.options, "experts": self.options["experts"] or EXPERTS}
        self.embedding = conv(spec.in_channels, widths[1], strides[1], strides[1])
        stages = levels - 2
        self.stages = nn.ModuleList(
            Stage(dims, widths[stage + 1], strides[stage + 2], stage, stages, options) for stage in range(stages)
        )
        # the map before the last goes to the decoder as it is
        self.refine = nn.ModuleList(
            nn.Identity() if level == levels - 2 else ResidualBlock(dims, width if level else spec.in_channels, width)
            for level, width in enumerate(widths)
        )
        self.ups = nn.ModuleList(
            ResidualUpBlock(dims, widths[level + 1], widths[level], strides[level + 1]) for level in range(levels - 1)
        )
        self.head = conv(widths[0], spec.num_outputs, 1)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep at most six resolutions; fix feature size and experts by the plan's first width."""
        options = cls.read_options(spec)
        levels = min(len(spec.features), MOST)
        share = spec.features[0] / USUAL_WIDTH
        size = options["feature_size"] or FEATURE_STEP * max(1, round(FEATURE_SIZE * share / FEATURE_STEP))
        options |= {"feature_size": size, "experts": options["experts"] or max(1, round(EXPERTS * share))}
        return spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": ((3,) * spec.dims,) * levels,
                "features": (size, *(size * 2**level for level in range(levels - 1))),
                "blocks_encoder": (1, 1, *options["depths"])[:levels],
                "blocks_decoder": (1,) * (levels - 1),
                "options": options,
            }
        )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of MONAI's Swin UNETR, whole or its encoder, fit all but the mixtures."""
        return translate(weights) if is_swin_unetr(weights) else weights

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the refined skips (B, F, *S / stride), high to low resolution, for x (B, C, *S)."""
        tokens = self.embedding(x).movedim(1, -1)
        maps = [x, as_skip(tokens)]
        for stage in self.stages:
            tokens = stage(tokens)
            maps.append(as_skip(tokens))
        return [refine(skip) for refine, skip in zip(self.refine, maps, strict=True)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1]
        for up, skip in zip(reversed(self.ups), reversed(features[:-1]), strict=True):
            x = up(x, skip)
        return self.head(x)


class Stage(nn.Module):
    """Swin blocks, then patch merging: tokens (B, *S, C) -> (B, *S / stride, 2 C)."""

    def __init__(self, dims: int, width: int, stride: tuple[int, ...], stage: int, stages: int, options: dict):
        super().__init__()
        self.entry = ResidualBlock(dims, width, width) if options["residual_stages"] else None
        mixes = stage >= stages - options["moe_layers"]
        self.blocks = nn.ModuleList(
            SwinBlock(
                width,
                options["heads"][stage],
                (options["window"],) * dims,
                shift=bool(number % 2),
                mlp=SoftMoE(width, options["experts"]) if mixes else None,
            )
            for number in range(options["depths"][stage])
        )
        self.merge = PatchMerging(width, stride, order=MERGING[options["merging"]])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the merged tokens."""
        if self.entry is not None:
            tokens = self.entry(tokens.movedim(-1, 1)).movedim(1, -1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.merge(tokens)


def as_skip(tokens: Tensor) -> Tensor:
    """Return tokens (B, *S, C) as a map (B, C, *S), each normalised over its channels, without parameters."""
    return nn.functional.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1)
