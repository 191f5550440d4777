"""MPU-Net. Source: Yu and Han 2023, arXiv:2307.05799; written from the description, no code taken.

A residual U-Net without norms in its blocks. At its bottom every position attends to all others (position attention);
every decoder level is gated by the map that it was built on, and predicts. The segmentation is the mean of the
probabilities of all levels. Trainer "tversky_bce" has its loss.

Taken from the plan: the strides (kernels of the convolutions down and up; a coarse axis keeps its size), then two more
convolutions down of stride 1, published 512 channels wide at the end. The width is 16 where the plan's first stage has
32 channels, else in proportion, doubled per stage up to 32 times the first, the published ratio. All other kernels are
3, on coarse axes too. Keys of more than 8192 positions are pooled. 2D is the same network. Further image channels ask
for a projection in the first residual. Options: base (first width), levels (None: all of the plan's; published 4),
elu_alpha (1.0; "channels": their number, as in the published code), dropout (0.2), norm ("batch", published with
batches of one; "instance"), mean (of "probabilities", as published: classes exclude each other; of "logits": for
regions that overlap, and the default for a single output).

Outputs are logits: the last one is the logarithm of the mean, at least 1e-7, whose softmax gives the mean again. Deep
supervision has one output per level, all of full resolution: the mean, then the levels below the finest one, 0.4 each
as at the published start. Left out: layers that nothing uses (1 049 754 parameters).
Published optimiser: Adam, learning rate 1e-4 (its recipe, used unless others are given), for 600 epochs. In short runs
the authors' method (with trainer "tversky_bce") learns slowly: 0.81 Dice on nuclei after 450 steps and none on
hippocampus after 500, where the common recipe and the supervised trainer reach 0.91 and 0.84 (a U-Net after the same
500 steps: 0.86); in equal time it lies two to six points behind a U-Net (benchmarks/RESULTS.md).

Parameters with one channel, two outputs, four stages from 32 channels: published 21 507 255 without unused ones, here
the same; with six stages 121 422 849.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.attention_gate import LINEAR, AttentionGate
from autoseg.architectures.blocks.attention_layer import attention_layer
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import NORMS, make_norm
from autoseg.architectures.blocks.position_attention import PositionAttention
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

WIDTH = 16  # published, of the first level
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
WIDEST = 32  # times the first width
MAX_TOKENS = 8192  # keys of position attention
SMALLEST = 1e-7  # of a mean probability
LOWER_WEIGHT = 0.4  # of an output below the finest level, beside the mean
SLOPE = 0.25  # of PReLU at the start


@register.architecture("mpu_net")
class MPUNet(Architecture):
    """MPU-Net, 3D and 2D: a residual U-Net with position attention, gated levels and a mean over all of them."""

    defaults = {"base": None, "levels": None, "elu_alpha": 1.0, "dropout": 0.2, "norm": "batch", "mean": None}
    choices = {"elu_alpha": (1.0, "channels"), "norm": NORMS, "mean": (None, "probabilities", "logits")}
    recipe = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 0.0}
    trainer = "tversky_bce"

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, norm, strides = spec.dims, spec.features, self.options["norm"], spec.strides
        conv, _, _ = conv_classes(dims)
        self.dropout = float(self.options["dropout"])
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be from 0 to below 1, got {self.dropout}", where="network.options.dropout")
        same = self.options["elu_alpha"] != "channels"
        bottom, last = bottom_widths(widths)
        down_strides = [*strides[1:], (1,) * dims, (1,) * dims]
        found = [*widths, bottom, last]
        self.enter = nn.Identity() if spec.in_channels == 1 else conv(spec.in_channels, widths[0], 1, bias=False)
        self.encoder = nn.ModuleList(
            conv_block(dims, before, after, 2)
            for before, after in zip((spec.in_channels, *found[1:-1]), found[:-1], strict=True)
        )
        self.downs = nn.ModuleList(
            down(before, after, stride, norm, 1.0 if same else float(after))
            for before, after, stride in zip(found[:-1], found[1:], down_strides, strict=True)
        )
        attention = PositionAttention(dims, bottom, max_tokens=MAX_TOKENS)
        self.attention = attention_layer(dims, last, bottom, attention, norm)
        inside = decoder_widths(widths)
        joined = [*(a + b for a, b in zip(widths[:-1], inside[:-1], strict=True)), widths[-1]]
        self.ups = nn.ModuleList(
            up(inside[level + 1], inside[level], strides[level + 1]) for level in range(len(widths) - 1)
        )
        self.decoder = nn.ModuleList(
            conv_block(dims, before, after, 3) for before, after in zip(joined, inside, strict=True)
        )
        self.gates = nn.ModuleList(AttentionGate(dims, width, width, max(1, width // 2), norm=norm) for width in inside)
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in inside)
        self.apply(_draw_weights)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix widths, the number of levels, and what the mean is taken of."""
        options = cls.read_options(spec)
        levels = min(options["levels"] or len(spec.features), len(spec.features))
        base = options["base"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        mean = options["mean"] or ("logits" if spec.num_outputs == 1 else "probabilities")
        return spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": ((3,) * spec.dims,) * levels,
                "features": tuple(base * min(WIDEST, 2**level) for level in range(levels)),
                "blocks_encoder": (1,) * levels,
                "blocks_decoder": (1,) * (levels - 1),
                "options": {**options, "base": base, "levels": levels, "mean": mean},
            }
        )

    def takes_regions(self) -> bool:
        """Only where logits are averaged: probabilities of a softmax sum to 1."""
        return self.options["mean"] == "logits"

    def output_weights(self) -> list[float] | None:
        """The mean counts most, the levels below the finest one equally."""
        lower = len(self.heads) - 1
        total = 1 + LOWER_WEIGHT * lower
        return [1 / total, *[LOWER_WEIGHT / total] * lower]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the skips (B, F, *S / stride), high to low resolution, then the attended map, for x (B, C, *S)."""
        features, below = [], self.enter(x)
        for level, (block, down_) in enumerate(zip(self.encoder, self.downs, strict=True)):
            x = block(x) + below
            if level:
                x = self._drop(x)
            features.append(x)
            x = below = down_(x)
        return [*features[:-1], self.attention(x)]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S); while training with deep supervision a list, see above."""
        below, maps = features[-1], []
        size, mode = features[0].shape[2:], LINEAR[self.spec.dims]
        for level in reversed(range(len(self.decoder))):
            skip = features[level]
            if level == len(self.decoder) - 1:
                x = self.decoder[level](skip) + below
            else:
                below = self.ups[level](x)
                x = self.decoder[level](torch.cat([below, skip], 1)) + below
            x = self.gates[level](x, below)
            if level:
                x = self._drop(x)
            maps.append(nn.functional.interpolate(self.heads[level](x).float(), size=size, mode=mode))
        mean = self._mean(maps)
        if self.training and self.spec.deep_supervision:
            return [mean, *maps[-2::-1]]
        return mean

    def _mean(self, maps: Sequence[Tensor]) -> Tensor:
        if self.options["mean"] == "logits":
            return torch.stack(tuple(maps)).mean(0)
        total = torch.zeros_like(maps[0])
        for logits in maps:
            total = total + logits.softmax(1)
        return (total / len(maps)).clamp_min(SMALLEST).log()

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)


def bottom_widths(widths: Sequence[int]) -> tuple[int, int]:
    """Return the channels of the attended map and of the map before it: two and four times the last level's."""
    most = WIDEST * widths[0]
    return min(2 * widths[-1], most), min(4 * widths[-1], most)


def decoder_widths(widths: Sequence[int]) -> list[int]:
    """Return the channels of the decoder's levels: twice the encoder's."""
    return [min(2 * width, WIDEST * widths[0]) for width in widths]


def conv_block(dims: int, before: int, after: int, count: int) -> nn.Sequential:
    """Return `count` 3-convolutions, each with a PReLU of one slope per channel."""
    conv, _, _ = conv_classes(dims)
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [conv(after if number else before, after, 3, padding=1), nn.PReLU(after, SLOPE)]
    return nn.Sequential(*layers)


def down(before: int, after: int, stride: Sequence[int], norm: str, alpha: float) -> nn.Sequential:
    """Return max-pooling by 3 without stride, a convolution with it (kernel = stride, or 3 without), norm, ELU."""
    dims, stride = len(stride), tuple(stride)
    conv, _, _ = conv_classes(dims)
    pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
    kernel = stride if max(stride) > 1 else (3,) * dims
    padding = 0 if max(stride) > 1 else 1
    return nn.Sequential(
        pool(3, 1, 1), conv(before, after, kernel, stride, padding), make_norm(dims, norm, after), nn.ELU(alpha)
    )


def up(before: int, after: int, stride: Sequence[int]) -> nn.Sequential:
    """Return a transposed convolution by the stride and a PReLU."""
    _, transposed, _ = conv_classes(len(stride))
    return nn.Sequential(transposed(before, after, tuple(stride), tuple(stride)), nn.PReLU(after, SLOPE))


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
