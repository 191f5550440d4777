"""The fine-tuning network of Hi-End-MAE. Source: Tang et al. 2025, Medical Image Analysis, arXiv:2502.08347, a UNETR
(Hatamizadeh et al. 2022, arXiv:2103.10504) with any patch size; written from the description, no code taken.

A plain vision transformer; its blocks at a quarter, half and three quarters of the depth are skips that transposed
convolutions bring up to 2, 4 and 8 times the token grid; residual convolutions join them on the way up. The last step
interpolates to the image, or is a transposed convolution where the token size is a power of two.

Taken from the plan: the token size, per axis an eighth of the patch, between 2 and 16; the patch must be a multiple of
it. Smaller tokens leave fewer steps up: the deepest skips stay. An axis of smaller tokens is brought up first. The
position table is trained, starts from sines and cosines and is interpolated for other sizes. The convolutions' width is
the plan's first; plans with fewer channels than nnU-Net's 32 get fewer blocks in proportion, and fewer heads by the
square of it. One output resolution: deep supervision changes nothing. 2D is the same with one axis less.

Options: depth (12) and heads (16, of 96 channels), token_size.

The released pretrained encoder starts it (`train --pretrained FILE`): its class token is dropped, its positions are
interpolated to the grid.
Authors: AdamW, learning rate 1e-4, weight decay 1e-5, 50 of 500 epochs warm-up, cosine, loss Dice (squared
denominators, no smoothing, background included) + cross-entropy (used unless others are given). Theirs adds 1e-6 below
the fraction of Dice, ours nothing.
Parameters at 96^3 with 14 outputs: published 361 271 150, of which 36 864 are norms that are never applied; here
361 234 286.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.residual_conv import ResidualBlock, ResidualUpBlock
from autoseg.architectures.blocks.sinusoidal_positions import sinusoidal_positions
from autoseg.architectures.blocks.vit import ViTBlock, fit_positions
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

DEPTH, HEADS, HEAD_WIDTH = 12, 16, 96
GRID = 8  # tokens per axis that are aimed at
TOKENS = (2, 16)  # least and largest edge
SKIPS = 3
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published size is meant for
LINEAR = ("bilinear", "trilinear")


@register.architecture("hi_end_mae")
class HiEndMAE(Architecture):
    """Hi-End-MAE's network, 3D and 2D: a vision transformer with skips from three depths, any token size."""

    defaults = {"token_size": None, "depth": None, "heads": None}
    recipe = {
        "optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 1e-5, "warmup_share": 0.1, "annealing": "cosine",
        "dice_squared": True, "dice_background": True, "dice_smooth": 0.0,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        token, dims, base = token_size(spec), spec.dims, spec.features[0]
        if any(edge % step for edge, step in zip(spec.patch_size, token, strict=True)):
            raise UserError(f"the patch {spec.patch_size} is no multiple of the token size {token}", where="network")
        depth, heads = self.options["depth"] or DEPTH, self.options["heads"] or HEADS
        if depth < SKIPS + 1:
            raise UserError(f"hi_end_mae needs a depth of {SKIPS + 1} or more, got {depth}", where="network.options")
        width = heads * HEAD_WIDTH
        conv, _, _ = conv_classes(dims)
        steps, last = up_strides(token)
        self.grid = tuple(edge // step for edge, step in zip(spec.patch_size, token, strict=True))
        self.taps = tuple(math.floor(depth * part / 4 + 0.5) for part in range(1, SKIPS + 1))[SKIPS - len(steps) :]
        self.patch_embed = conv(spec.in_channels, width, token, token)
        self.pos_embed = nn.Parameter(sinusoidal_positions(width, self.grid).flatten(1).mT[None].clone())
        self.blocks = nn.ModuleList(ViTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        widths = [base * 2**level for level in range(len(steps) + 1)]
        self.refine = ResidualBlock(dims, spec.in_channels, base)
        self.skips = nn.ModuleList(  # from high to low resolution
            TokenPath(dims, width, widths[level], steps[: len(steps) - level + 1]) for level in range(1, len(steps) + 1)
        )
        before = [*widths[1:], width]  # what comes from below
        self.ups = nn.ModuleList(
            ResidualUpBlock(dims, before[level], widths[level], steps[len(steps) - level])
            for level in range(1, len(steps) + 1)
        )
        if last is None:
            self.last = InterpolatedUpBlock(dims, before[0], base)
        else:
            self.last = ResidualUpBlock(dims, before[0], base, last)
        self.head = conv(base, spec.num_outputs, 1)
        self.apply(_draw_weights)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(width, -1))

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the options: token size by the patch, depth and heads less where the plan is narrow."""
        options, share = cls.read_options(spec), min(1.0, spec.features[0] / USUAL_WIDTH)
        options["token_size"] = list(token_size(spec))  # as JSON gives it back
        options["depth"] = options["depth"] or 4 * max(1, round(DEPTH * share / 4))
        options["heads"] = options["heads"] or max(1, round(HEADS * share**2))
        return spec.model_copy(update={"options": options})

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return the token size."""
        return token_size(spec)

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The released encoder's weights, with its positions, of a cubic grid, for the grid here."""
        table = weights.get("encoder_pos_embed")
        if table is None:
            return weights
        translated = {name.removeprefix("encoder.").replace("patch_embed.proj.", "patch_embed."): tensor
                      for name, tensor in weights.items() if name.startswith("encoder.")}  # fmt: skip
        edge = round(table.shape[-2] ** (1 / self.spec.dims))
        if edge**self.spec.dims == table.shape[-2]:
            table = table.reshape(1, *table.shape[-2:])
            translated["pos_embed"] = fit_positions(table, (edge,) * self.spec.dims, self.grid)
        return translated

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return maps for x (B, C, *S): the image's, those of three depths, high to low resolution, the tokens."""
        tokens = self.patch_embed(x)
        grid = tokens.shape[2:]
        tokens, tapped = tokens.flatten(2).mT + fit_positions(self.pos_embed, self.grid, grid), []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number in self.taps:
                tapped.append(tokens.mT.unflatten(2, grid))
        skips = [path(tap) for path, tap in zip(self.skips, tapped, strict=True)]
        return [self.refine(x), *skips, self.norm(tokens).mT.unflatten(2, grid)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1]
        for up, skip in zip(reversed(self.ups), reversed(features[1:-1]), strict=True):
            x = up(x, skip)
        return self.head(self.last(x, features[0]))


class TokenPath(nn.Module):
    """Tokens (B, F, *grid) brought up: a transposed convolution, then more of them, each with a residual block."""

    def __init__(self, dims: int, before: int, after: int, strides: Sequence[tuple[int, ...]]):
        super().__init__()
        _, transposed, _ = conv_classes(dims)
        layers: list[nn.Module] = [transposed(before, after, strides[0], strides[0], bias=False)]
        for stride in strides[1:]:
            layers += [transposed(after, after, stride, stride, bias=False), ResidualBlock(dims, after, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, *grid * strides)."""
        return self.layers(x)


class InterpolatedUpBlock(nn.Module):
    """Linear interpolation to the skip (B, after, *S), 3-convolution, concatenation, residual block."""

    def __init__(self, dims: int, before: int, after: int):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.conv = conv(before, after, 3, padding=1)
        self.block = ResidualBlock(dims, 2 * after, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, after, *S)."""
        x = nn.functional.interpolate(x, size=skip.shape[2:], mode=LINEAR[skip.ndim - 4])
        return self.block(torch.cat([self.conv(x), skip], 1))


def token_size(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the voxels of a token per axis."""
    given = spec.options.get("token_size")
    if given is None:
        return tuple(min(TOKENS[1], max(TOKENS[0], math.ceil(edge / GRID))) for edge in spec.patch_size)
    token = tuple(int(edge) for edge in given)
    if len(token) != spec.dims or min(token) < 1 or max(token) < 2:
        raise UserError(
            f"token_size must be {spec.dims} whole numbers, one of them above 1, got {token}", where="network.options"
        )
    return token


def up_strides(token: tuple[int, ...]) -> tuple[list[tuple[int, ...]], tuple[int, ...] | None]:
    """Return the strides from the token grid up, at most three, and that of the step to the voxels; None: interpolate.

    Every axis is doubled until the largest power of two within the token, from the grid on; the step to the voxels is
    a transposed convolution where it doubles axes or leaves them.
    """
    doublings = [edge.bit_length() - 1 for edge in token]
    exact = [edge == 1 << count for edge, count in zip(token, doublings, strict=True)]
    steps = min(SKIPS, max(count - is_exact for count, is_exact in zip(doublings, exact, strict=True)))
    strides = [tuple(2 if step < count else 1 for count in doublings) for step in range(steps)]
    rest = tuple(edge / 2 ** min(count, steps) for edge, count in zip(token, doublings, strict=True))
    return strides, tuple(int(edge) for edge in rest) if set(rest) <= {1, 2} else None


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
