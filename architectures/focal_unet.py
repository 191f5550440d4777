"""Focal-UNet. Source: Naderi et al. 2022, arXiv:2212.09263; written from the description, no code taken.

The layout of Swin-UNet with focal modulation in place of window attention: contexts of growing depth-wise convolutions
and of the whole map, gated per position, multiply a query. Many blocks down, one per stage up; the mask comes from one
transposed convolution and a 7-convolution.

Taken from the plan: the strides (kernel = stride, down and up) of at most four stages. The first makes the patches; it
takes the plan's first two strides (published: patches of 4) where the plan has more than four. Focal kernels are no
longer than the planned grid, and 1, as the head's is, along an axis that the plan does not convolve yet. The width is
96 where the plan has 32 channels, else in proportion, and doubles per stage. 3D is the same network. One output
resolution: deep supervision changes nothing. Any image that is a multiple of the total stride can be predicted.

Options: width, depths (4, 4, 4, 4), decoder_depth (1), focal_levels (3), focal_window (3), drop_path (0.2).

Left out: the repetition of a grey image to three channels and a LayerNorm that nothing uses (192 parameters).
Published: AdamW, learning rate 1e-4, betas 0.5 and 0.99, weight decay 0.01, a cosine with seven warm restarts, loss 0.6
Dice (squared denominators, background included) + 0.4 cross-entropy (its recipe, used unless others are given), and
FocalNet-T's encoder: `train --pretrained FILE` takes it, as far as its depths (2, 2, 6, 2) reach; without, all weights
are drawn.

Parameters in 2D with three channels, nine outputs: published 44 254 060, here 44 253 868 (without the unused ones).
"""

from __future__ import annotations

import itertools

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.focal_modulation import FocalBlock, focal_kernels
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.patch_strides import grids, patch_strides
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

STAGES = 4
WIDTH = 96  # published, of the first grid
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by
FACTOR = 2  # by which focal kernels grow
HEAD_KERNEL = 7


@register.architecture("focal_unet")
class FocalUNet(Architecture):
    """Focal-UNet, 2D and 3D: a transformer U-Net whose attention is focal modulation."""

    defaults = {
        "width": None, "depths": [4, 4, 4, 4], "decoder_depth": 1, "focal_levels": 3, "focal_window": 3,
        "drop_path": 0.2,
    }  # fmt: skip
    recipe = {
        "optimizer": "adamw", "learning_rate": 1e-4, "beta1": 0.5, "beta2": 0.99, "weight_decay": 1e-2,
        "annealing": "cosine_restarts", "dice_weight": 0.6, "cross_entropy_weight": 0.4, "dice_squared": True,
        "dice_background": True,
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        stages, widths, strides = len(spec.features) - 1, spec.features[1:], spec.strides[1:]
        if not 1 <= stages <= STAGES:
            raise UserError(f"focal_unet has 1 to {STAGES} stages, got {stages}", where="network.features")
        conv, transposed, _ = conv_classes(spec.dims)
        depths, up_depths = spec.blocks_encoder[1:], spec.blocks_decoder[::-1]
        kernels = [_kernels(spec, stage, self.options) for stage in range(stages)]
        rates = [self.options["drop_path"] * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        self.patch_embed = Resample(conv, spec.in_channels, widths[0], strides[0])
        starts = list(itertools.accumulate(depths, initial=0))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"blocks": _blocks(widths[s], kernels[s], rates[starts[s] : starts[s + 1]])}
                | ({"downsample": Resample(conv, widths[s], widths[s + 1], strides[s + 1])} if s < stages - 1 else {})
            )
            for s in range(stages)
        )
        self.norm = nn.LayerNorm(widths[-1])
        ups = range(stages - 1)
        self.ups = nn.ModuleList(Resample(transposed, widths[s + 1], widths[s], strides[s + 1]) for s in ups)
        self.joins = nn.ModuleList(nn.Linear(2 * widths[s], widths[s]) for s in ups)
        self.decoder = nn.ModuleList(_blocks(widths[s], kernels[s], [rates[s]] * up_depths[s + 1]) for s in ups)
        self.last_norm = nn.LayerNorm(widths[0])
        self.expand = transposed(widths[0], widths[0], strides[0], strides[0])
        kernel = tuple(HEAD_KERNEL if edge > 1 else 1 for edge in spec.kernel_sizes[0])
        padding = tuple(edge // 2 for edge in kernel)
        self.head = conv(widths[0], spec.num_outputs, kernel, padding=padding, bias=False)
        self.apply(draw_linear)  # convolutions and norms keep torch's values

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths double from the option's or from 96, scaled as the plan's."""
        options = cls.read_options(spec)
        if len(spec.features) < 2:
            raise UserError("focal_unet needs at least two resolutions", mend="plan larger patches")
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        sizes = patch_strides(spec, STAGES, joins=len(spec.features) > STAGES + 1)
        stages = len(sizes["strides"]) - 1
        depths = [*options["depths"], *[options["depths"][-1]] * STAGES][:stages]
        update = {
            "features": (width, *(width * 2**stage for stage in range(stages))),
            "blocks_encoder": (1, *depths),
            "blocks_decoder": (*[options["decoder_depth"]] * (stages - 1), 1),
            "options": {**options, "width": width},
        }
        return spec.model_copy(update={**sizes, **update})

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the inputs of all stages but the last, and the last's output, for x (B, C, *S), channel-first."""
        skips, x = [], self.patch_embed(x)
        for layer in self.layers:
            skips.append(x)
            x = layer["blocks"](x.movedim(1, -1)).movedim(-1, 1)
            if "downsample" in layer:
                x = layer["downsample"](x)
        return [*skips[:-1], self.norm(x.movedim(1, -1)).movedim(-1, 1)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1]
        for level in reversed(range(len(self.ups))):
            tokens = torch.cat([self.ups[level](x), features[level]], 1).movedim(1, -1)
            x = self.decoder[level](self.joins[level](tokens)).movedim(-1, 1)
        return self.head(self.expand(self.last_norm(x.movedim(1, -1)).movedim(-1, 1)))


class Resample(nn.Module):
    """A strided or transposed convolution whose kernel is its stride, then LayerNorm: (B, a, *S) -> (B, b, *T)."""

    def __init__(self, convolution: type[nn.Module], before: int, after: int, stride: tuple[int, ...]):
        super().__init__()
        self.proj = convolution(before, after, stride, stride)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resampled map."""
        return self.norm(self.proj(x).movedim(1, -1)).movedim(-1, 1)


def _kernels(spec: NetworkSpec, stage: int, options: dict) -> list[tuple[int, ...]]:
    thin = [edge == 1 for edge in spec.kernel_sizes[stage + 1]]
    return focal_kernels(options["focal_levels"], options["focal_window"], FACTOR, grids(spec)[stage + 1], thin)


def _blocks(width: int, kernels: list[tuple[int, ...]], rates: list[float]) -> nn.Sequential:
    return nn.Sequential(*(FocalBlock(width, kernels, drop_path=rate) for rate in rates))
