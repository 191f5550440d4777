"""xLSTM-UNet. Source: Chen et al. 2024, arXiv:2407.01530; written from the description, no code taken.

A residual U-Net of the plan with Vision-LSTM layers: variant "enc" (the default) after several encoder stages, variant
"bot" on the bottleneck only.

Taken from the plan: stages, strides, kernels, widths and the patch. Stages whose planned map has no more positions than
channels take the channels as tokens; their layers have the size of the map, so such a network runs on the planned patch
only. As published: 2D networks have no skip at full resolution; `options["variant"]` chooses.

Differs from the published code: a LayerNorm that nothing uses is left out; the mLSTM is computed chunk by chunk, which
gives the same numbers at linear instead of quadratic cost; heads at lower resolution exist only with deep supervision.
Published optimiser: nnU-Net's SGD, as the engine's default, at a rate that its authors give on the command line.

Parameters with one channel, three outputs, 128^3, six stages: published 43 697 095 (enc) and 42 088 247 (bot), of which
1 280 and 640 are the unused LayerNorms; here 43 695 815 and 42 087 607.
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.strided_projection import strided_projection
from autoseg.architectures.blocks.vision_lstm import VisionLSTM
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

VARIANTS = ("enc", "bot")
SLOPE = 0.01  # of LeakyReLU


@register.architecture("xlstm_unet")
class XLSTMUNet(Architecture):
    """xLSTM-UNet, 2D and 3D: a residual U-Net with Vision-LSTM layers in the encoder or on the bottleneck."""

    defaults = {"variant": VARIANTS[0]}
    choices = {"variant": VARIANTS}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        variant = self.options["variant"]
        conv, _, _ = conv_classes(spec.dims)
        widths, kernels = spec.features, spec.kernel_sizes
        levels = range(len(widths))
        self.stem = stage(spec.in_channels, widths[0], kernels[0], (1,) * spec.dims, spec.blocks_encoder[0])
        self.stages = nn.ModuleList(
            stage(widths[max(0, s - 1)], widths[s], kernels[s], spec.strides[s], spec.blocks_encoder[s]) for s in levels
        )
        self.apply(_he)
        self.mixers = nn.ModuleList(mixer(spec, s, variant) for s in levels)
        self.skipless = 1 if spec.dims == 2 else 0  # decoder levels below this number have no skip
        self.ups = nn.ModuleList(conv(widths[s + 1], widths[s], 1) for s in levels[:-1])
        self.decoders = nn.ModuleList(
            stage((1 if s < self.skipless else 2) * widths[s], widths[s], kernels[s], (1,) * spec.dims, blocks)
            for s, blocks in zip(levels[:-1], reversed(spec.blocks_decoder), strict=True)
        )
        heads = max(1, len(widths) - 1) if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:heads])
        for part in (self.ups, self.decoders, self.heads):
            part.apply(_he)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Two blocks per stage, one in the deeper half of the encoder and in the later half of the decoder."""
        n = len(spec.features)
        one_from, decoder_one_from = math.ceil(n / 2), math.ceil((n - 1) / 2 + 0.5)
        return spec.model_copy(
            update={
                "blocks_encoder": tuple(1 if s >= one_from else 2 for s in range(n)),
                "blocks_decoder": tuple(1 if s >= decoder_one_from else 2 for s in range(n - 1)),
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one mixed map per stage, high to low resolution, for x (B, C, *S)."""
        features, x = [], self.stem(x)
        for convs, mix in zip(self.stages, self.mixers, strict=True):
            x = mix(convs(x))
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.ups))):
            scale = [float(step) for step in self.spec.strides[level + 1]]
            x = self.ups[level](nn.functional.interpolate(x, scale_factor=scale, mode="nearest"))
            x = self.decoders[level](x if level < self.skipless else torch.cat([x, features[level]], 1))
            if level and everything:
                outputs.append(self.heads[level](x))
        outputs.append(self.heads[0](x))
        return outputs[::-1] if everything else outputs[-1]


def mixer(spec: NetworkSpec, s: int, variant: str) -> nn.Module:
    """Return what follows encoder stage s."""
    last, width = len(spec.features) - 1, spec.features[s]
    if variant == "bot":
        return PatchTokens(width) if s == last else nn.Identity()
    if spec.dims == 3:
        uses_lstm, uses_convs = s >= 3, s < 3
    else:
        uses_lstm, uses_convs = s > 1 and (last - s) % 2 == 0, s == 1
    if uses_convs:
        return ResidualUnit(width, width, spec.kernel_sizes[s], (1,) * spec.dims, projected=False).apply(_he)
    if not uses_lstm:
        return nn.Identity()
    positions = math.prod(grid(spec, s))
    return ChannelTokens(positions) if positions <= width else PatchTokens(width)


def grid(spec: NetworkSpec, s: int) -> tuple[int, ...]:
    """Return the shape of the map of stage s for the planned patch."""
    shape = spec.patch_size
    for stride in spec.strides[: s + 1]:
        shape = tuple(edge // step for edge, step in zip(shape, stride, strict=True))
    return shape


class PatchTokens(nn.Module):
    """A Vision-LSTM block over the positions of x (B, F, *S), row-major."""

    def __init__(self, width: int):
        super().__init__()
        self.block = VisionLSTM(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        return self.block(x.flatten(2).mT).mT.unflatten(2, x.shape[2:]).to(x.dtype)


class ChannelTokens(nn.Module):
    """A Vision-LSTM block over the channels of x (B, F, *S); `positions` is the product of S."""

    def __init__(self, positions: int):
        super().__init__()
        self.positions = positions
        self.block = VisionLSTM(positions)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map; a UserError if the patch is not the planned one."""
        tokens = x.flatten(2)
        if tokens.shape[2] != self.positions:
            raise UserError(
                f"this network was built for {self.positions} positions in this stage, got {tuple(x.shape[2:])}",
                mend="give patches of the planned size, or take the variant bot",
            )
        return self.block(tokens).view_as(x).to(x.dtype)


def stage(before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...], blocks: int) -> nn.Sequential:
    """Return `blocks` residual units, the first with the stride and a projected skip."""
    units = [ResidualUnit(before, after, kernel, stride, projected=True)]
    units += [ResidualUnit(after, after, kernel, (1,) * len(kernel), projected=False) for _ in range(blocks - 1)]
    return nn.Sequential(*units)


class ResidualUnit(nn.Module):
    """Two convolutions with instance norm, added to x or to its 1x1 projection: (B, a, *S) -> (B, b, *S / stride)."""

    def __init__(self, before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...], *, projected: bool):
        super().__init__()
        conv, _, norm = conv_classes(len(kernel))
        padding = tuple(edge // 2 for edge in kernel)
        self.convs = nn.Sequential(
            conv(before, after, kernel, stride, padding),
            norm(after, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
            conv(after, after, kernel, padding=padding),
            norm(after, affine=True),
        )
        self.skip = strided_projection(before, after, stride) if projected else nn.Identity()
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        return self.act(self.convs(x) + self.skip(x))


def _he(module: nn.Module) -> None:
    """Draw convolution weights as nnU-Net does; the Vision-LSTM blocks keep their own."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        nn.init.zeros_(module.bias)
