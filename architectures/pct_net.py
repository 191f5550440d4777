"""PCT-Net of MIS-FM. Source: Wang et al. 2023, arXiv:2306.16925; written from the description, no code taken.

Convolutions at the first two resolutions; below, every level of encoder and decoder adds a convolution branch and a
shifted-window transformer branch on the same input. Layers are in pre-activation order: norm, PReLU, convolution.

Taken from the plan: three to five resolutions and their strides. At the first two, convolutions do not mix along an
axis that has not been pooled and is not pooled next: the authors' resolution modes 0, 1 and 2 follow from the plan,
and only the embedding and head that are used are built. Widths are 24, 48, 128, 256, 512 (released weights) where the
plan's first stage has 32 channels, else in proportion. Windows shrink per axis where the map is smaller. 2D is the
same network.

Options: widths (the class default of the authors: 32, 64, 128, 256, 512), window (6), dropout (0.2, of the transformer
levels), drop_path (0.2), norm ("batch" as published, or "instance": batches of one sample train with either, but batch
norm then sees that sample alone).

Authors: Adam, learning rate 1e-3, weight decay 1e-5, loss 0.5 Dice (background included) + 0.5 cross-entropy, batch 2;
the rate falls as a polynomial of power 0.8 in the published code (used unless others are given), in the paper it halves
from time to time.
Deviations: the released index of relative positions mixes up offsets, here each has its own; the released window is
cubic, cut to the map's shortest axis. Their unused branches are left out. `fmunet` is their later network.
Parameters with one channel, two outputs, near-isotropic (mode 1): published 44 199 386 without the unused branches, of
which 2 560 are norms that are never applied; here 44 196 826.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import NORMS, make_norm
from autoseg.architectures.blocks.patch_strides import resolution_kernels
from autoseg.architectures.blocks.window_attention import SwinStage
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published widths are meant for
WIDTHS = (24, 48)  # of the convolutional levels
HEADS = (4, 8, 16)  # of the transformer levels, whose heads are 32 channels wide
HEAD_WIDTH = 32
CONVOLUTIONAL = len(WIDTHS)
LEAST, MOST = 3, 5  # resolutions
DEPTH = 2  # transformer blocks per level


@register.architecture("pct_net")
class PCTNet(Architecture):
    """PCT-Net, 3D and 2D: parallel convolution and shifted-window branches at every lower resolution."""

    defaults = {"widths": None, "window": 6, "dropout": 0.2, "drop_path": 0.2, "norm": "batch"}
    choices = {"norm": NORMS}
    recipe = {
        "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-5, "annealing_power": 0.8, "dice_weight": 0.5,
        "cross_entropy_weight": 0.5, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, strides, kernels = spec.dims, spec.features, spec.strides, spec.kernel_sizes
        levels = len(widths)
        if not LEAST <= levels <= MOST:
            raise UserError(f"pct_net has {LEAST} to {MOST} resolutions, got {levels}", where="network.features")
        conv, _, _ = conv_classes(dims)
        norm = self.options["norm"]

        def stage(level: int) -> nn.Module:
            if level < CONVOLUTIONAL:
                return ConvBlock(dims, widths[level], kernels[level], norm)
            return ConvTransformer(dims, widths[level], HEADS[level - CONVOLUTIONAL], kernels[level], self.options)

        self.stem = conv(spec.in_channels, widths[0], kernels[0], padding=tuple(edge // 2 for edge in kernels[0]))
        self.downs = nn.ModuleList(
            Down(dims, widths[level - 1], widths[level], strides[level], kernels[level], norm)
            for level in range(1, levels)
        )
        self.encoder = nn.ModuleList(stage(level) for level in range(levels))
        self.ups = nn.ModuleList(
            UpCat(dims, widths[level + 1], widths[level], strides[level + 1], kernels[level], norm)
            for level in range(levels - 1)
        )
        self.decoder = nn.ModuleList(stage(level) for level in range(levels - 1))
        self.heads = nn.ModuleList(
            nn.Sequential(*before(dims, width, norm), conv(width, spec.num_outputs, 1))
            for width in widths[: levels - 1 if spec.deep_supervision else 1]
        )

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep at most five resolutions; kernels follow from the strides, widths from the plan's first."""
        options = cls.read_options(spec)
        levels = min(len(spec.features), MOST)
        share = spec.features[0] / USUAL_WIDTH
        part = max(1, round(HEAD_WIDTH * share))
        widths = options["widths"] or [
            *(max(1, round(width * share)) for width in WIDTHS),
            *(heads * part for heads in HEADS),
        ]
        return spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": resolution_kernels(spec.strides[:levels]),
                "features": tuple(widths[:levels]),
                "blocks_encoder": (1,) * levels,
                "blocks_decoder": (1,) * (levels - 1),
                "options": {**options, "widths": list(widths)},
            }
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per resolution, high to low, for x (B, C, *S)."""
        x = self.stem(x)
        features = [self.encoder[0](x)]
        for down, stage in zip(self.downs, self.encoder[1:], strict=True):
            features.append(stage(down(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.ups))):
            x = self.decoder[level](self.ups[level](x, features[level]))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]


def before(dims: int, width: int, norm: str) -> list[nn.Module]:
    """Return what precedes a convolution: norm and PReLU with one slope."""
    return [make_norm(dims, norm, width), nn.PReLU()]


class ConvBlock(nn.Sequential):
    """Norm, PReLU, convolution, norm, PReLU, dropout, convolution: (B, C, *S) -> (B, C, *S)."""

    def __init__(self, dims: int, width: int, kernel: tuple[int, ...], norm: str, dropout: float = 0.0):
        conv, _, _ = conv_classes(dims)
        padding = tuple(edge // 2 for edge in kernel)
        first = conv(width, width, kernel, padding=padding)
        second = conv(width, width, kernel, padding=padding)
        super().__init__(*before(dims, width, norm), first, *before(dims, width, norm), nn.Dropout(dropout), second)


class ConvTransformer(nn.Module):
    """A ConvBlock and two shifted-window blocks on the same input x (B, C, *S), outputs added."""

    def __init__(self, dims: int, width: int, heads: int, kernel: tuple[int, ...], options: dict):
        super().__init__()
        drop = options["dropout"]
        self.conv = ConvBlock(dims, width, kernel, options["norm"], drop)
        self.transformer = SwinStage(
            width, DEPTH, heads, (options["window"],) * dims,
            drop=drop, attention_drop=drop, drop_path=options["drop_path"],
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        return self.conv(x) + self.transformer(x.movedim(1, -1)).movedim(-1, 1)


class Down(nn.Sequential):
    """Max-pooling by the stride, norm, PReLU, convolution: (B, a, *S) -> (B, b, *S / stride)."""

    def __init__(self, dims: int, a: int, b: int, stride: tuple[int, ...], kernel: tuple[int, ...], norm: str):
        conv, _, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](stride, stride)
        super().__init__(pool, *before(dims, a, norm), conv(a, b, kernel, padding=tuple(edge // 2 for edge in kernel)))


class UpCat(nn.Module):
    """The deep map (B, a, *S / stride) up to the skip (B, b, *S), both concatenated and convolved: (B, b, *S)."""

    def __init__(self, dims: int, a: int, b: int, stride: tuple[int, ...], kernel: tuple[int, ...], norm: str):
        super().__init__()
        conv, transposed, _ = conv_classes(dims)
        padding = tuple(edge // 2 for edge in kernel)
        self.up = nn.Sequential(*before(dims, a, norm), transposed(a, b, stride, stride))
        self.join = nn.Sequential(*before(dims, 2 * b, norm), conv(2 * b, b, kernel, padding=padding))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the joined map."""
        return self.join(torch.cat([skip, self.up(x)], 1))
