"""ParaTransCNN. Source: Sun et al. 2024, arXiv:2401.15307; written from the description, no code taken.

Two encoders side by side: a ResNet-34 without max-pooling, and a pyramid of transformers with full attention and no
positions. Where both have a map, channel attention (squeeze-and-excitation) weighs the two together; a convolutional
decoder with transposed convolutions joins these levels.

Taken from the plan: strides and kernels. Fused are the plan's third, fourth and fifth resolution (published strides 4,
8, 16); smaller plans start at their second; where the first of these has more than `max_tokens` positions in the
planned patch, deeper ones, which is logged. The ResNet keeps its own widths and depths, also for anisotropic
plans. Widths: the transformer's 320 (2D) or 96 (3D, our choice) and the ResNet's 64 where the plan has 32
channels, else in proportion; heads are 8, or fewer so that they have 20 channels. Any image that is a multiple of the
total stride can be predicted. One output resolution: deep supervision changes nothing.

Options: dim, depth (3), heads, cnn_width, max_tokens (4096), norm ("batch", published and the default in 2D;
"instance", the default in 3D, where batches are small), dropout (0.1).
Published: SGD, learning rate 0.01, momentum 0.9 (not Nesterov's), weight decay 1e-4, loss 0.5 Dice (squared
denominators, background included) + 0.5 cross-entropy (its recipe, used unless others are given), with a ResNet from
ImageNet: `train --pretrained FILE` takes those weights (64 wide); without, all are drawn.

Parameters in 2D with three channels, nine outputs: published 245 468 937, the same here.
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.classifier_weights import resnet_weights
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.normalization import NORMS, usual_norm
from autoseg.architectures.blocks.patch_strides import grids
from autoseg.architectures.blocks.resnet import ResNet
from autoseg.architectures.blocks.self_attention import TransformerLayer, common_heads
from autoseg.architectures.blocks.squeeze_excite import SqueezeExcite
from autoseg.architectures.blocks.telling import tell
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

FUSED = 3  # levels
DIMS = {2: 320, 3: 96}  # widths of the first transformer
CNN_WIDTH = 64
CNN_GROWTH = (1, 2, 4, 8)
CNN_DEPTHS = (3, 4, 6, 3)
HEADS, HEAD_WIDTH = 8, 20
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published widths are scaled by
STEP = 8  # widths of transformers are multiples of it
REDUCTION = 16  # of squeeze-and-excitation


@register.architecture("paratranscnn")
class ParaTransCNN(Architecture):
    """ParaTransCNN, 2D and 3D: a ResNet and a transformer pyramid in parallel, fused by channel attention."""

    defaults = {
        "dim": None, "depth": 3, "heads": None, "cnn_width": None, "max_tokens": 4096, "norm": None, "dropout": 0.1,
    }  # fmt: skip
    choices = {"norm": (None, *NORMS)}
    recipe = {
        "optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4,
        "dice_weight": 0.5, "cross_entropy_weight": 0.5, "dice_squared": True, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options, dims, strides, kernels = self.options, spec.dims, spec.strides, spec.kernel_sizes
        levels = len(strides)
        if levels < 2:
            raise UserError("paratranscnn needs at least two resolutions", mend="plan larger patches")
        first = first_fused(spec, options["max_tokens"])
        conv, transposed, _ = conv_classes(dims)
        dim, norm = options["dim"], options["norm"] or usual_norm(dims)
        heads = options["heads"] or default_heads(dim)
        cnn_widths = [options["cnn_width"] * factor for factor in _extend(CNN_GROWTH, levels - 1)]
        if dim % heads:
            raise UserError(f"{heads} heads do not divide the width {dim}", where="network.options.heads")
        unit = (1,) * dims
        self.cnn = ResNet(
            spec.in_channels, cnn_widths, _extend(CNN_DEPTHS, levels - 1), (strides[1], unit, *strides[2:]),
            (kernels[0], *kernels[1:]), norm=norm,
        )  # fmt: skip
        fused = range(levels - first)
        start = tuple(math.prod(axis) for axis in zip(*strides[: first + 1], strict=True))
        steps = [start, *strides[first + 1 :]]
        widths = [dim * 2**i for i in fused]
        self.embeddings = nn.ModuleList(
            conv(before, after, step, step)
            for before, after, step in zip((spec.in_channels, *widths), widths, steps, strict=False)
        )
        self.transformers = nn.ModuleList(
            nn.Sequential(*(Layer(width, heads, options["dropout"]) for _ in range(options["depth"])))
            for width in widths
        )
        joined = [widths[i] + cnn_widths[first - 1 + i] for i in fused]
        self.excite = nn.ModuleList(SqueezeExcite(width, reduction=REDUCTION) for width in joined)
        self.convs, self.ups = nn.ModuleDict(), nn.ModuleDict()
        below = 0
        for i in reversed(fused):
            width = joined[i] + below
            below = width // 2 if i else dim
            self.convs[str(i)] = double_conv(width, width, kernels[first + i], norm)
            self.ups[str(i)] = transposed(width, below, steps[i], steps[i])
        self.head = conv(dim, spec.num_outputs, 1)
        self.first = first
        if first > _usual_first(levels):
            tell(__name__, f"paratranscnn: the first transformer works at strides {start}, so that it has fewer tokens")

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the levels up to the third fused one; fix widths, heads and norm."""
        options, share = cls.read_options(spec), spec.features[0] / USUAL_WIDTH
        dim = options["dim"] or STEP * max(1, round(DIMS[spec.dims] * share / STEP))
        width = options["cnn_width"] or max(1, round(CNN_WIDTH * share))
        options |= {"dim": dim, "cnn_width": width, "heads": options["heads"] or default_heads(dim)}
        options["norm"] = options["norm"] or usual_norm(spec.dims)
        levels = min(len(spec.features), first_fused(spec, options["max_tokens"]) + FUSED)
        update = {
            "strides": spec.strides[:levels],
            "kernel_sizes": spec.kernel_sizes[:levels],
            "features": (width, *(width * factor for factor in _extend(CNN_GROWTH, levels - 1))),
            "blocks_encoder": (1, *_extend(CNN_DEPTHS, levels - 1)),
            "blocks_decoder": (2,) * (levels - 1),
            "options": options,
        }
        return spec.model_copy(update=update)

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a classifying ResNet-34 are the convolutional encoder's."""
        return resnet_weights(weights, "cnn.") or weights

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the fused levels (B, F, *S / stride), high to low resolution, for x (B, C, *S)."""
        convolved, features = self.cnn(x)[self.first - 1 :], []
        for embed, transformer, cnn, excite in zip(
            self.embeddings, self.transformers, convolved, self.excite, strict=True
        ):
            x = embed(x)
            x = transformer(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])
            features.append(excite(torch.cat([x, cnn], 1)))
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = None
        for level in reversed(range(len(features))):
            joined = features[level] if x is None else torch.cat([features[level], x], 1)
            x = self.ups[str(level)](self.convs[str(level)](joined))
        return self.head(x)


class Layer(TransformerLayer):
    """tokens (B, N, C) -> (B, N, C): the pre-norm layer, hidden 2 C, dropout also on the attention's whole branch."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(width, heads, 2 * width, qkv_bias=False, dropout=dropout)
        self.branch_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the next layer."""
        tokens = tokens + self.branch_dropout(self.attention(self.norm_attention(tokens)))
        return tokens + self.mlp(self.norm_mlp(tokens))


def first_fused(spec: NetworkSpec, max_tokens: int) -> int:
    """Return the number of the first resolution that both encoders have."""
    level = _usual_first(len(spec.strides))
    while level + 1 < len(spec.strides) and math.prod(grids(spec)[level]) > max_tokens:
        level += 1
    return level


def default_heads(dim: int) -> int:
    """Return 8 heads, or fewer so that each has 20 channels."""
    return common_heads(dim, min(HEADS, max(1, dim // HEAD_WIDTH)))


def _usual_first(levels: int) -> int:
    return max(1, min(2, levels - FUSED))


def _extend(values: tuple[int, ...], length: int) -> list[int]:
    return [*values, *[values[-1]] * length][:length]
