"""MedDINOv3's network. Source: Li et al. 2025, arXiv:2509.02379; written from the description, no code taken.

DINOv3's plain vision transformer; the patch tokens of four blocks, a quarter of the depth apart, go through the final
norm and are concatenated; a decoder of 2x2 transposed convolutions without skips leads back to the pixels. It has one
output resolution, so deep supervision changes nothing. 2D only, as published: 3D data train in a 2D configuration.

Taken from the plan: the token size, 16 pixels, or 8 or 4 where the plan's total stride is below 32 or 16 (small
images); the patch must be a multiple of it. Positions are rotary and relative to the image's edges: any multiple of the
token size can be predicted. One channel is repeated three times, so that published weights fit; other numbers get a
patch embedding of their own. Plans with fewer channels than nnU-Net's 32 get fewer heads and blocks in proportion.

Options: size (S, B, L), token_size, depth and heads in place of the size's, taps ("multi", or "last": the baseline),
storage_tokens (4), qkv_bias (false), drop_path (0.2).

Authors: AdamW, betas 0.9 and 0.98, weight decay 0.05, learning rate 3e-4, 3e-5 for a pretrained encoder (in full runs),
gradient clip 12, linear decay (its recipe, used unless others are given). `train --pretrained FILE` takes the released
teacher, of size B with tokens of 16. From plain DINOv3 weights the encoder has 3e-5, too, where the authors take 1e-4.
The mask token is no trainable parameter here.
Parameters with 14 outputs: published 110 720 846 with the mask token of 768, here 110 720 078 and that token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from autoseg.architectures.blocks.channel_norm import ChannelNorm
from autoseg.architectures.blocks.dinov3_vit import DinoVisionTransformer
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

HEAD_WIDTH = 64
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the sizes are meant for
RGB = 3
SLOPE = 0.01  # that the decoder's first weights are drawn for
TOKENS = (2, 4, 8, 16)
PRETRAINED_FACTOR = 0.1  # of the learning rate of an encoder with pretrained weights


class Size(NamedTuple):
    """A published size."""

    depth: int
    heads: int


SIZES = {"S": Size(12, 6), "B": Size(12, 12), "L": Size(24, 16)}


@register.architecture("meddinov3")
class MedDINOv3(Architecture):
    """MedDINOv3, 2D: DINOv3's vision transformer with tokens of four depths and a convolutional way up."""

    dims = (2,)
    defaults = {
        "size": "B", "token_size": None, "depth": None, "heads": None, "taps": "multi", "storage_tokens": 4,
        "qkv_bias": False, "drop_path": 0.2,
    }  # fmt: skip
    choices = {
        "size": tuple(SIZES), "token_size": (None, *TOKENS), "taps": ("multi", "last"), "qkv_bias": (False, True),
    }  # fmt: skip
    recipe = {
        "optimizer": "adamw", "learning_rate": 3e-4, "own_rates": True, "weight_decay": 0.05, "beta2": 0.98,
        "annealing_power": 1.0, "gradient_clip": 12.0,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options = self.options
        size, token = SIZES[options["size"]], options["token_size"] or token_size(spec)
        if any(edge % token for edge in spec.patch_size):
            raise UserError(f"the patch {spec.patch_size} is no multiple of the token size {token}", where="network")
        depth, heads = options["depth"] or size.depth, options["heads"] or size.heads
        width, taps = heads * HEAD_WIDTH, tap_indices(depth, options["taps"])
        self.backbone = DinoVisionTransformer(
            RGB if spec.in_channels == 1 else spec.in_channels, width, depth, heads, token, taps,
            storage_tokens=options["storage_tokens"], qkv_bias=options["qkv_bias"], drop_path=options["drop_path"],
        )  # fmt: skip
        self.decoder = make_decoder(width * len(taps), spec.num_outputs, token.bit_length() - 1)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the options: token size by the plan's strides, depth and heads less where the plan is narrow."""
        options = cls.read_options(spec)
        size, share = SIZES[options["size"]], min(1.0, spec.features[0] / USUAL_WIDTH)
        options["token_size"] = options["token_size"] or token_size(spec)
        options["depth"] = options["depth"] or 4 * max(1, round(size.depth * share / 4))
        options["heads"] = options["heads"] or max(1, round(size.heads * share))
        return spec.model_copy(update={"options": options})

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return the token size."""
        return (spec.options.get("token_size") or token_size(spec),) * 2

    def rate_factors(self, *, pretrained: bool) -> dict[str, float]:
        """Return that of a pretrained encoder: published are 3e-5, and 3e-4 for the decoder."""
        return {"backbone.": PRETRAINED_FACTOR} if pretrained else {}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the patch tokens of the tapped blocks, (B, F, *S / token) each, for x (B, C, *S)."""
        return self.backbone(x.expand(-1, RGB, -1, -1) if x.shape[1] == 1 else x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        return self.decoder(torch.cat(features, 1))


def token_size(spec: NetworkSpec) -> int:
    """Return 16, or less where the plan's patches are small: half of its total stride, but no less than 4."""
    return min(TOKENS[-1], max(4, min(spec.total_stride) // 2))


def tap_indices(depth: int, taps: str) -> tuple[int, ...]:
    """Return the blocks that are read: the last of every quarter of the depth, or the last alone."""
    if taps == "last":
        return (depth - 1,)
    if depth % 4:
        raise UserError(f"meddinov3 needs a depth that 4 divides, got {depth}", where="network.options.depth")
    return tuple(depth * quarter // 4 - 1 for quarter in range(1, 5))


def make_decoder(width: int, num_outputs: int, stages: int) -> nn.Sequential:
    """Return transposed convolutions that double the size and halve the channels, norm and GELU after each; a head."""
    layers: list[nn.Module] = []
    for _ in range(stages):
        layers += [nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2), nn.GELU()]
        width //= 2
    decoder = nn.Sequential(*layers, nn.Conv2d(width, num_outputs, 1))
    for layer in decoder:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            nn.init.zeros_(layer.bias)
    return decoder
