"""MSVM-UNet. Source: Chen et al. 2024, BIBM, arXiv:2408.13735; written from the description, no code taken.

A U-Net of visual state-space blocks without gate. The encoder is VMamba's tiny form; in the decoder the perceptrons
hold parallel depthwise convolutions of kernel 1, 3 and 5, and maps are enlarged by a 1-convolution over the channels
and a depthwise 3-convolution over space before channels are shuffled into space ("large kernel patch expanding").

Taken from the plan: the strides of at most four stages. The stem takes the plan's first two strides (published: 4)
where that leaves two stages, else its first; its two convolutions share them. The width is 96 where the plan's first
stage has 32 channels, else in proportion, and doubles per stage. One output resolution: deep supervision changes
nothing. Any image that is a multiple of the total stride can be predicted. 3D is an extension: six scans, 3D kernels.

Options: width, token_size (the stem's stride), depths (2, 2, 8, 2; "small": 2, 2, 20, 2 with drop_path 0.3),
decoder_depth (2), drop_path (0.2), norm of the decoder (batch in 2D as published; instance in 3D, where batches are
small; batch norm needs more than one position per channel).

The authors start from VMamba-T: `train --pretrained FILE` with its weights (2D, width 96); without, all are drawn.

Deviations: a grey image is not repeated to three channels; a loaded encoder is frozen at first (10 of 300 epochs
there) only by `--trainer fine_tuning --set frozen=0.033 --set warmup=0 --set rate_share=1`, which has a polynomial.
Published: AdamW, learning rate 5e-4, weight decay 1e-3, cosine, loss 0.6 Dice (squared denominators, background
included) + 0.4 cross-entropy (its recipe, used unless others are given).
Parameters in 2D with three channels, nine outputs: published 35.93 M, here 35 925 513.
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.channel_norm import ChannelNorm
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.normalization import NORMS, make_norm, usual_norm
from autoseg.architectures.blocks.patch_merging import channels_to_space
from autoseg.architectures.blocks.patch_strides import strides_from_patch
from autoseg.architectures.blocks.visual_state_space import VisualStateSpaceBlock, drop_path_rates
from autoseg.architectures.blocks.vmamba_weights import is_vmamba, numbered, vmamba_block
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

STAGES = 4
WIDTH = 96  # published, of the first stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
MLP_RATIO = 4
EPSILON = 1e-5  # of layer norms
KERNELS = (1, 3, 5)  # of the convolutions in the decoder's perceptrons
SCAN = {"expand": 1, "state": 1, "gate": False, "conv_bias": False}


@register.architecture("msvm_unet")
class MSVMUNet(Architecture):
    """MSVM-UNet, 2D and 3D: visual state-space blocks, in the decoder with convolutions of several kernels."""

    defaults = {
        "width": None, "token_size": None, "depths": [2, 2, 8, 2], "decoder_depth": 2, "drop_path": 0.2, "norm": None,
    }  # fmt: skip
    choices = {"norm": (None, *NORMS)}
    recipe = {
        "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 1e-3, "annealing": "cosine", "final_rate": 0.002,
        "dice_weight": 0.6, "cross_entropy_weight": 0.4, "dice_squared": True, "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, strides = spec.dims, spec.features[1:], spec.strides[1:]
        stages, norm = len(widths), self.options["norm"] or usual_norm(spec.dims)
        if not 1 <= stages <= STAGES:
            raise UserError(f"msvm_unet has 1 to {STAGES} stages, got {stages}", where="network.features")
        conv, _, _ = conv_classes(dims)
        drop_path = self.options["drop_path"]
        first = tuple(min(2, step) for step in strides[0])
        second = tuple(step // half for step, half in zip(strides[0], first, strict=True))
        half = max(1, widths[0] // 2)
        self.stem = nn.Sequential(
            conv(spec.in_channels, half, 3, first, padding=1), ChannelNorm(half, eps=EPSILON), nn.GELU(),
            conv(half, widths[0], 3, second, padding=1), ChannelNorm(widths[0], eps=EPSILON),
        )  # fmt: skip
        rates = drop_path_rates(drop_path, spec.blocks_encoder[1:])
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(dims, widths[s], rate, Mlp(widths[s], MLP_RATIO * widths[s])) for rate in rates[s]))
            for s in range(stages)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(conv(widths[s - 1], widths[s], 3, strides[s], padding=1), ChannelNorm(widths[s], eps=EPSILON))
            for s in range(1, stages)
        )
        rates = drop_path_rates(drop_path, spec.blocks_decoder[:-1][::-1])  # from the highest resolution
        self.ups = nn.ModuleList(
            UpBlock(dims, widths[s + 1], widths[s], strides[s + 1], rates[s][::-1], norm) for s in range(stages - 1)
        )
        self.expand = LargeKernelExpanding(widths[0], widths[0], strides[0], norm)
        self.head = conv(widths[0], spec.num_outputs, 1)
        self.apply(draw_linear)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths double from the option's or from 96, scaled as the plan's."""
        options = cls.read_options(spec)
        if len(spec.features) < 2:
            raise UserError("msvm_unet needs at least two resolutions", mend="plan larger patches")
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        sizes = strides_from_patch(spec, STAGES, options["token_size"])
        stages, depths = len(sizes["strides"]) - 1, options["depths"]
        if len(depths) < stages:
            raise UserError(f"depths must have {stages} entries, got {depths}", where="network.options")
        token, norm = list(sizes["strides"][1]), options["norm"] or usual_norm(spec.dims)
        update = {
            "features": (width, *(width * 2**stage for stage in range(stages))),
            "blocks_encoder": (1, *depths[:stages]),
            "blocks_decoder": (*[options["decoder_depth"]] * (stages - 1), 1),
            "options": {**options, "width": width, "token_size": token, "norm": norm},
        }
        return spec.model_copy(update={**sizes, **update})

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """VMamba's weights start the encoder."""
        if not is_vmamba(weights):
            return weights
        translated = {
            f"stem.{name}": tensor for name, tensor in numbered(weights, "patch_embed.", (0, 1, 3, 4)).items()
        }
        for number in range(len(self.downs)):
            layers = numbered(weights, f"layers.{number}.downsample.", (0, 1))
            translated |= {f"downs.{number}.{name}": tensor for name, tensor in layers.items()}
        for name, tensor in weights.items():
            if found := vmamba_block(name, tensor):
                translated[f"stages.{found[0]}.{found[1]}"] = found[2]
        return translated

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per stage, high to low resolution, for x (B, C, *S)."""
        features, x = [], self.stem(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.downs[number - 1](x)
            x = stage(x.movedim(1, -1)).movedim(-1, 1)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1]
        for up, skip in zip(reversed(self.ups), reversed(features[:-1]), strict=True):
            x = up(x, skip)
        return self.head(self.expand(x))


def block(dims: int, width: int, rate: float, mlp: nn.Module) -> VisualStateSpaceBlock:
    """Return VMamba's later block: one state per channel, no gate, a perceptron."""
    return VisualStateSpaceBlock(dims, width, drop_path=rate, mlp=mlp, **SCAN)


class UpBlock(nn.Module):
    """Expand x (B, before, *S / stride), join it with the skip (B, after, *S), mix: (B, after, *S)."""

    def __init__(self, dims: int, before: int, after: int, stride: tuple[int, ...], rates: list[float], norm: str):
        super().__init__()
        self.expand = LargeKernelExpanding(before, after, stride, norm)
        self.join = conv_classes(dims)[0](2 * after, after, 1)
        self.blocks = nn.Sequential(
            *(block(dims, after, rate, MultiScaleMlp(dims, after, MLP_RATIO * after)) for rate in rates)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the map of the higher resolution."""
        x = self.join(torch.cat([self.expand(x), skip], 1))
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1)


class LargeKernelExpanding(nn.Module):
    """x (B, before, *S) -> (B, after, *S * stride): 1-convolution, norm, ReLU, depthwise 3-convolution, shuffle, LN."""

    def __init__(self, before: int, after: int, stride: tuple[int, ...], norm: str):
        super().__init__()
        dims, inner = len(stride), math.prod(stride) * after
        conv, _, _ = conv_classes(dims)
        self.stride = stride
        self.layers = nn.Sequential(
            conv(before, inner, 1),
            make_norm(dims, norm, inner),
            nn.ReLU(inplace=True),
            conv(inner, inner, 3, padding=1, groups=inner),
        )
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger map."""
        return self.norm(channels_to_space(self.layers(x).movedim(1, -1), self.stride)).movedim(-1, 1)


class MultiScaleMlp(nn.Module):
    """A perceptron on a map (B, *S, C) whose hidden map is added to its depthwise convolutions of several kernels."""

    def __init__(self, dims: int, width: int, hidden: int):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.act = nn.GELU()
        self.convs = nn.ModuleList(
            conv(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False) for kernel in KERNELS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the perceptron's output."""
        hidden = self.act(self.fc1(x)).movedim(-1, 1)
        hidden = hidden + sum(conv(hidden) for conv in self.convs)
        return self.fc2(hidden.movedim(1, -1))
