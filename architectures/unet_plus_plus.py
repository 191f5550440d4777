"""UNet++. Source: Zhou et al. 2018, arXiv:1807.10165; written from the description, no code taken.

A triangle of nodes X(level, column): column 0 is an encoder, and node X(i, j) sees all earlier nodes of its level and
the up-sampled node below, X(i+1, j-1). Every node of level 0 can predict the segmentation at full resolution.

Taken from the plan: number of levels (any from 2 on), widths, strides, kernels. Options:
style "engine" (default: nnU-Net's units of convolution, instance norm, LeakyReLU; strided convolutions down; heads
without bias) or "paper" (ReLU, dropout 0.5, no norm, max-pooling);
inference "last" (default), "average" (mean of the probabilities of all heads, as logits) or "prune:d" (head d alone;
nodes it does not see are not computed); activation "softmax" (default) or "sigmoid" (overlapping regions), for
"average" only. `inference` and `activation` may change after training: `autoseg predict --network-option
inference=prune:2`; `benchmarks/pruning.py` scores every depth of a trained model;
max_columns (default none: all): how many of the nested nodes of full resolution are kept, the last ones, since they
take most of the memory; the dropped ones have no head and cannot be pruned to.

Published: loss of every head half the cross-entropy plus Dice with smooth 1; an L2 penalty of 1e-4 on the kernels of
the nodes, which is a weight decay of 2e-4 by Adam; from memory Adam at 3e-4 (their example script: 1e-4). This is the
recipe, used unless others are given. They name no schedule and stop when the validation no longer improves: as
published the rate stays what it is and training ends with its steps, by default the engine's schedule stands. Sigmoids
and binary cross-entropy are softmax and cross-entropy here, but for regions.

Parameters, paper style, one channel, one output, widths 32 to 512, one head: published 9 041 601, here the same; the
published nnU-Net variant in 2D (widths 32 to 480, five poolings, two outputs): 24 000 032, here the same. Our default
takes the plan's widths, capped at 320 in 3D. Its authors' activations take 2.5 to 3 times those of a U-Net.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

SLOPE = 0.01


@register.architecture("unet_plus_plus")
class UNetPlusPlus(Architecture):
    """UNet++, 2D and 3D: nested decoders between encoder and output, supervised at full resolution."""

    defaults = {"style": "engine", "inference": "last", "activation": "softmax", "max_columns": None}
    choices = {"style": ("engine", "paper"), "activation": ("softmax", "sigmoid")}
    recipe = {
        "optimizer": "adam", "learning_rate": 3e-4, "weight_decay": 2e-4, "own_decay": True,
        "cross_entropy_weight": 0.5, "dice_smooth": 1.0,
    }  # fmt: skip
    as_published = {"final_rate": 1.0}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        paper = self.options["style"] == "paper"
        levels, widths, dims = len(spec.features), spec.features, spec.dims
        if levels < 2:
            raise UserError("unet_plus_plus needs at least two resolutions", mend="plan larger patches")
        _, transposed, _ = conv_classes(dims)
        unit = PaperUnit if paper else Unit
        self.nodes, self.ups = nn.ModuleDict(), nn.ModuleDict()
        for level in range(levels):
            before = widths[level - 1] if level else spec.in_channels
            self.nodes[key(level, 0)] = unit(dims, before, widths[level], spec.kernel_sizes[level], spec.strides[level])
        for column in range(1, levels):
            for level in range(levels - column):
                if level == 0 and column not in self.columns:
                    continue
                stride, width = spec.strides[level + 1], widths[level]
                earlier = sum(found < column for found in self.columns) if level == 0 else column - 1
                self.ups[key(level, column)] = transposed(widths[level + 1], width, stride, stride, bias=paper)
                self.nodes[key(level, column)] = unit(
                    dims, width * (earlier + 2), width, spec.kernel_sizes[level], (1,) * dims
                )
        conv, _, _ = conv_classes(dims)
        self.heads = nn.ModuleDict(
            {str(column): conv(widths[0], spec.num_outputs, 1, bias=paper) for column in self._supervised()}
        )
        self.apply(_draw_weights)

    @property
    def columns(self) -> tuple[int, ...]:
        """Return the columns from 1 on that level 0 has: all, or the last `max_columns`."""
        columns, most = tuple(range(1, len(self.spec.features))), self.options["max_columns"]
        if most is None:
            return columns
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise UserError(
                f"UNetPlusPlus cannot take max_columns={most!r}",
                where="network.options",
                mend="a whole number from 1 on, or leave it out",
            )
        return columns[-most:]

    @property
    def depth(self) -> int:
        """Return the column of the last node that is computed in prediction."""
        inference = str(self.options["inference"])
        kind, _, depth = inference.partition(":")
        if kind == "prune" and depth.isdecimal():
            return int(depth)
        if inference not in ("last", "average"):
            raise UserError(
                f"UNetPlusPlus cannot take inference={inference!r}",
                where="network.options",
                mend="one of: last, average, prune:1, prune:2, ...",
            )
        return len(self.spec.features) - 1

    def output_weights(self) -> list[float]:
        """All heads count the same: each has the full resolution."""
        return [1 / len(self.heads)] * len(self.heads)

    def undecayed(self) -> set[str]:
        """Return all but the kernels of the nodes: the paper penalises these alone."""
        kernels = {name for name, tensor in self.nodes.named_parameters(prefix="nodes") if tensor.ndim > 1}
        return {name for name, _ in self.named_parameters()} - kernels

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the nodes of column 0 (B, F, *S / stride), high to low resolution; pruned as prediction asks for."""
        last = len(self.spec.features) - 1 if self.training else self.depth
        features: list[Tensor] = []
        for level in range(last + 1):
            features.append(self.nodes[key(level, 0)](features[-1] if features else x))
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S); while training with deep supervision one per head, the last column's first."""
        top = self._columns(features)
        if self.training and self.spec.deep_supervision:
            return [self.heads[column](top[int(column)]) for column in reversed(list(self.heads))]
        if not self.training and self.options["inference"] == "average":
            return self._average([self.heads[column](top[int(column)]) for column in self.heads])
        last = max(top)
        return self.heads[str(last)](top[last])

    def _columns(self, features: list[Tensor]) -> dict[int, Tensor]:
        """Return the nodes of level 0 by column."""
        rows = [{0: feature} for feature in features]
        for column in range(1, len(features)):
            for level in range(len(features) - column):
                if level or column in self.columns:
                    up = self.ups[key(level, column)](rows[level + 1][column - 1])
                    rows[level][column] = self.nodes[key(level, column)](torch.cat([up, *rows[level].values()], 1))
        return rows[0]

    def _average(self, logits: list[Tensor]) -> Tensor:
        """Return logits whose probabilities are the mean of those of all heads."""
        stacked = torch.stack([output.float() for output in logits])
        if self.options["activation"] == "softmax":
            return stacked.log_softmax(2).logsumexp(0)
        # The mean of sigmoids and that of their complements, both in logarithms, so that nothing saturates.
        inside = nn.functional.logsigmoid(stacked).logsumexp(0)
        return inside - nn.functional.logsigmoid(-stacked).logsumexp(0)

    def _supervised(self) -> list[int]:
        """Return the columns that have a head."""
        columns = list(self.columns)
        if self.depth not in columns:
            raise UserError(
                f"unet_plus_plus has heads {columns[0]} to {columns[-1]}, not {self.depth}",
                where="network.options.inference",
            )
        if self.spec.deep_supervision:
            return columns
        if self.options["inference"] != "last":
            raise UserError(
                "only a network trained with deep supervision can be averaged or pruned",
                where="network.options.inference",
                mend='use inference "last"',
            )
        return columns[-1:]


class Unit(nn.Module):
    """Twice convolution, instance norm, LeakyReLU; the first convolution has the stride."""

    def __init__(self, dims: int, before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...]):
        super().__init__()
        conv, _, norm = conv_classes(dims)
        padding = tuple(edge // 2 for edge in kernel)

        def half(channels: int, step: tuple[int, ...] | int) -> list[nn.Module]:
            activation = nn.LeakyReLU(SLOPE, inplace=True)
            return [conv(channels, after, kernel, step, padding), norm(after, affine=True), activation]

        self.layers = nn.Sequential(*half(before, stride), *half(after, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, *S / stride) for x (B, before, *S)."""
        return self.layers(x)


class PaperUnit(nn.Module):
    """Max-pooling by the stride, then twice convolution, ReLU, dropout 0.5."""

    def __init__(self, dims: int, before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...]):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
        padding = tuple(edge // 2 for edge in kernel)
        self.pool = nn.Identity() if set(stride) == {1} else pool(stride, stride)

        def half(channels: int) -> list[nn.Module]:
            return [conv(channels, after, kernel, 1, padding), nn.ReLU(inplace=True), nn.Dropout(0.5)]

        self.layers = nn.Sequential(*half(before), *half(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, *S / stride) for x (B, before, *S)."""
        return self.layers(self.pool(x))


def key(level: int, column: int) -> str:
    """Return the name of a node."""
    return f"{level}_{column}"


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
