"""Primus and PrimusV2. Source: Wald et al. 2025, arXiv:2503.01835; written from the description, no code taken.

A plain vision transformer: a tokenizer of total stride 8, EVA-02 blocks with absolute and rotary positions, a decoder
of transposed convolutions without skips. It has one output resolution, so deep supervision changes nothing.

Taken from the plan: the token grid, which is the patch over the token size. The token size is 8, halved on an axis for
every stage in which the plan leaves that (coarse) axis alone; the patch must be a multiple of it. Position embeddings
tie the weights to the patch. Plans with fewer channels than nnU-Net's 32 get fewer heads and blocks in proportion. 2D
is an extension: the head's channels are shared by two axes, those that do not fill a pair per axis do not turn.

Options: version (1: one convolution as tokenizer, 2: residual convolutions, 3: preliminary, wider and with skips into
the token grid), size (S, B, M, L), token_size, and depth and heads in place of the size's.

Needs AdamW with warm-up (learning rate 3e-4, weight decay 0.05, betas 0.9 and 0.98, gradient clip 1, warm-up over the
first twentieth, 12 500 of 250 000 steps, then the polynomial over the rest: its recipe, used unless others are given;
in short runs the warm-up is that of all networks); with nnU-Net's SGD it does not train.

The authors' weights, pretrained or not, start it: `train --pretrained FILE`.
Parameters with one channel, two outputs, 64^3: published S 23 386 526, M 145 551 770; V2 S 24 159 518,
M 146 145 050; the same here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from autoseg.architectures.blocks.channel_norm import ChannelNorm
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.eva import EvaBlock
from autoseg.architectures.blocks.primus_weights import POSITIONS, translate
from autoseg.architectures.blocks.rotary_attention import rotary_table
from autoseg.architectures.blocks.vit import fit_positions
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

TOKEN = 8
DROP_PATH = 0.2  # of the last block; rises from 0
SLOPE = 0.01
WEIGHT_STD = 0.02  # published as truncated at -2 and 2, a hundred deviations away
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the sizes are meant for


class Size(NamedTuple):
    """A published size."""

    depth: int
    heads: int
    head_width: int


SIZES = {"S": Size(12, 6, 66), "B": Size(12, 12, 66), "M": Size(16, 12, 72), "L": Size(24, 16, 66)}
TOKENIZER_WIDTHS = {2: (32, 32, 64, 128), 3: (32, 64, 256, 1024)}  # stem, then strided blocks


@register.architecture("primus")
class Primus(Architecture):
    """Primus, 2D and 3D: a vision transformer with rotary attention, sizes S, B, M, L, tokenizers 1, 2, 3."""

    defaults = {"version": 2, "size": "M", "token_size": None, "depth": None, "heads": None}
    choices = {"version": (1, 2, 3), "size": tuple(SIZES)}
    recipe = {
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "weight_decay": 0.05,
        "beta2": 0.98,
        "gradient_clip": 1.0,
        "warmup_share": 0.05,
    }

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options = self.options
        size, token = SIZES[options["size"]], token_size(spec)
        if any(edge % step for edge, step in zip(spec.patch_size, token, strict=True)):
            raise UserError(f"the patch {spec.patch_size} is no multiple of the token size {token}", where="network")
        depth, heads = options["depth"] or size.depth, options["heads"] or size.heads
        width = heads * size.head_width
        strides = decoder_strides(token)
        self.grid = tuple(edge // step for edge, step in zip(spec.patch_size, token, strict=True))
        self.tokenizer = make_tokenizer(options["version"], spec.in_channels, width, strides[::-1])
        self.position = nn.Parameter(torch.empty(1, math.prod(self.grid), width))
        self.blocks = nn.ModuleList(
            EvaBlock(width, heads, int(width * 8 / 3), drop_path=DROP_PATH * block / max(1, depth - 1))
            for block in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = make_decoder(width, spec.num_outputs, strides)
        sine, cosine = rotary_table(self.grid, size.head_width)
        self.register_buffer("sine", sine, persistent=False)
        self.register_buffer("cosine", cosine, persistent=False)
        self._draw_weights()

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the options: token size by the plan's strides, depth and heads less where the plan is narrow."""
        options = cls.read_options(spec)
        size, share = SIZES[options["size"]], min(1.0, spec.features[0] / USUAL_WIDTH)
        options["token_size"] = list(token_size(spec))  # as JSON gives it back
        options["depth"] = options["depth"] or max(2, round(size.depth * share))
        options["heads"] = options["heads"] or max(1, round(size.heads * share))
        return spec.model_copy(update={"options": options})

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return the token size."""
        return token_size(spec)

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights; the positions of a cubic grid are interpolated to the grid here."""
        if POSITIONS not in weights:
            return weights
        translated, dims = translate(weights), self.spec.dims
        count = translated["position"].shape[1]
        edge = round(count ** (1 / dims))
        if count != math.prod(self.grid) and edge**dims == count:
            translated["position"] = fit_positions(translated["position"], (edge,) * dims, self.grid)
        return translated

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map, the transformer's tokens on their grid (B, F, *grid), for x (B, C, *S)."""
        if x.shape[2:] != self.spec.patch_size:
            raise UserError(
                f"this network was built for patches of {self.spec.patch_size}, got {tuple(x.shape[2:])}",
                mend="give patches of the planned size: the position embeddings depend on it",
            )
        tokens = self.tokenizer(x).flatten(2).mT + self.position
        for block in self.blocks:
            tokens = block(tokens, self.sine, self.cosine)
        return [self.norm(tokens).mT.unflatten(2, self.grid)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        return self.decoder(features[-1])

    def _draw_weights(self) -> None:
        nn.init.normal_(self.position, std=WEIGHT_STD)
        self.tokenizer.apply(_he)
        self.decoder.apply(_he)
        for number, block in enumerate(self.blocks, start=1):
            block.apply(_normal)
            with torch.no_grad():
                for layer in (block.attention.out, block.mlp.out):
                    layer.weight.div_(math.sqrt(2 * number))


def token_size(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the voxels of a token per axis, powers of two."""
    given = spec.options.get("token_size")
    if given is None:
        return tuple(max(1, TOKEN >> _left_alone(spec, axis)) for axis in range(spec.dims))
    token = tuple(int(edge) for edge in given)
    if len(token) != spec.dims or max(token) < 2 or any(edge < 1 or edge & (edge - 1) for edge in token):
        raise UserError(f"token_size must be {spec.dims} powers of two, got {token}", where="network.options")
    return token


def _left_alone(spec: NetworkSpec, axis: int) -> int:
    """Return in how many stages at the start the plan strides other axes but not this one."""
    count = 0
    for stride in spec.strides[1:]:
        if stride[axis] > 1:
            break
        count += max(stride) > 1
    return count


def decoder_strides(token: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return strides from the token grid to the voxels: 2 on every axis that is still divisible."""
    strides = []
    while max(token) > 1:
        strides.append(tuple(min(2, edge) for edge in token))
        token = tuple(max(1, edge // 2) for edge in token)
    return strides


def make_tokenizer(version: int, channels: int, width: int, strides: list[tuple[int, ...]]) -> nn.Module:
    """Return the tokenizer of a version: (B, C, *S) -> (B, width, *grid)."""
    if version == 1:
        token = tuple(math.prod(axis) for axis in zip(*strides, strict=True))
        return conv_classes(len(token))[0](channels, width, token, token)
    return ConvTokenizer(version, channels, width, strides)


class ConvTokenizer(nn.Module):
    """Residual convolutions down to the token grid; version 3 adds projections of earlier maps."""

    def __init__(self, version: int, channels: int, width: int, strides: list[tuple[int, ...]]):
        super().__init__()
        dims = len(strides[0])
        conv, _, _ = conv_classes(dims)
        widths = TOKENIZER_WIDTHS[version]
        widths = (*widths, *[widths[-1]] * len(strides))[: len(strides) + 1]
        slope = 0.0 if version == 2 else SLOPE
        steps = [(1,) * dims, *strides]
        self.blocks = nn.ModuleList(
            TokenizerBlock(before, after, stride, slope, bias=number == 0)
            for number, (before, after, stride) in enumerate(zip((channels, *widths), widths, steps, strict=False))
        )
        self.project = conv(widths[-1], width, 1)
        self.skips, self.skip_scales = nn.ModuleList(), nn.ParameterList()
        for level in range(len(strides) if version == 3 else 0):
            rest = tuple(math.prod(axis) for axis in zip(*strides[level:], strict=True))
            self.skips.append(conv(widths[level], width, rest, rest))
            self.skip_scales.append(nn.Parameter(torch.full((1,), 1e-5)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens on their grid."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        tokens = self.project(x)
        for skip, scale, earlier in zip(self.skips, self.skip_scales, maps, strict=False):
            tokens = tokens + scale * skip(earlier)
        return tokens


class TokenizerBlock(nn.Module):
    """Two convolutions added to the pooled, projected input: (B, a, *S) -> (B, b, *S / stride)."""

    def __init__(self, before: int, after: int, stride: tuple[int, ...], slope: float, *, bias: bool):
        super().__init__()
        conv, _, norm = conv_classes(len(stride))
        pool = (nn.AvgPool2d, nn.AvgPool3d)[len(stride) - 2]
        self.convs = nn.Sequential(
            conv(before, after, 3, stride, 1, bias=bias),
            norm(after, affine=True),
            nn.LeakyReLU(slope, inplace=True),
            conv(after, after, 3, padding=1, bias=bias),
            norm(after, affine=True),
        )
        skip: list[nn.Module] = [pool(stride, stride)] if max(stride) > 1 else []
        if before != after:
            skip += [conv(before, after, 1, bias=False), norm(after, affine=True)]
        self.skip = nn.Sequential(*skip)
        self.act = nn.LeakyReLU(slope, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return self.act(self.convs(x) + self.skip(x))


def decoder_widths(width: int, num_outputs: int, stages: int) -> list[int]:
    """Return the channels from the tokens to the logits, falling geometrically, in multiples of 8."""
    ratio = (width / (2 * num_outputs)) ** (1 / stages)
    between = [max(8, 8 * round(width / ratio**stage / 8)) for stage in range(1, stages)]
    return [width, *between, num_outputs]


def make_decoder(width: int, num_outputs: int, strides: list[tuple[int, ...]]) -> nn.Sequential:
    """Return transposed convolutions from the token grid to the logits, norm and GELU between them."""
    _, transposed, _ = conv_classes(len(strides[0]))
    widths = decoder_widths(width, num_outputs, len(strides))
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [transposed(before, after, stride, stride), ChannelNorm(after), nn.GELU()]
    return nn.Sequential(*layers[:-2])


def _he(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=WEIGHT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
