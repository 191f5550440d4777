"""Y-Net. Source: Farshad et al. 2022, MICCAI, arXiv:2204.07613; written from the description, no code taken.

A U-Net with a second, spectral encoder of fast Fourier convolutions: half of its channels are global and convolved in
the Fourier domain, where every coefficient sees the whole patch. Both encoders meet in the bottleneck; one decoder
follows, with skips from the spatial encoder.

Taken from the plan: resolutions, widths, strides, kernels; both encoders have the plan's widths, the last of them not
doubled. In 3D all axes are transformed, but an axis with fewer than 8 planned positions, and fewer than half of the
longest axis, is left out. Local Fourier units halve every transformed axis on its own (the published ones need squares)
and are left out where too few channels can be cut. Transforms take the patch as periodic: predict with patches of the
planned size. Heads at lower resolution, made only with deep supervision, are an extension.

Options: ffc (true; false: a second spatial encoder), ratio of global channels (0.5), skip_ffc (false; true: spectral
skips too), cat_merge (false: encoders are concatenated; true: elements alternate, as in the published code, which
scrambles space), norm ("batch", published and the default in 2D; "instance", the default in 3D, where batches are
small). Losses are the engine's: the published one takes a softmax twice, by mistake, so that its minimum is not 0; no
option brings that back.
Published: Adam, learning rate 5e-4, weight decay 1e-4, no deep supervision (its recipe, used unless others are given).

Parameters in 2D with one channel, nine outputs, widths 32 to 512, without deep supervision: published 6 925 353, the
same here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.fourier_convolution import FourierConvolution
from autoseg.architectures.blocks.normalization import NORMS, usual_norm
from autoseg.architectures.blocks.patch_strides import grids
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

TRANSFORMED_FROM = 8  # positions of an axis that is much shorter than the longest


@register.architecture("y_net")
class YNet(Architecture):
    """Y-Net, 2D and 3D: a U-Net with a second encoder that works in the Fourier domain."""

    defaults = {"ffc": True, "ratio": 0.5, "skip_ffc": False, "cat_merge": False, "norm": None}
    choices = {
        "ffc": (True, False), "skip_ffc": (False, True), "cat_merge": (False, True), "norm": (None, *NORMS),
    }  # fmt: skip
    recipe = {"optimizer": "adam", "learning_rate": 5e-4, "weight_decay": 1e-4, "deep_supervision": False}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        widths, levels, options, kernels = spec.features, len(spec.features), self.options, spec.kernel_sizes
        if levels < 2:
            raise UserError("y_net needs at least two resolutions", mend="plan larger patches")
        if not 0 <= options["ratio"] <= 1:
            raise UserError(f"ratio must be from 0 to 1, got {options['ratio']}", where="network.options.ratio")
        conv, transposed, _ = conv_classes(spec.dims)
        norm = options["norm"] or usual_norm(spec.dims)
        inner = encoder_widths(widths)
        found = (spec.in_channels, *inner)
        down = range(levels - 1)
        self.pools = [spec.strides[s + 1] for s in down]
        self.spatial = nn.ModuleList(double_conv(found[s], inner[s], kernels[s], norm, bias=False) for s in down)
        if options["ffc"]:
            self.spectral: nn.Module = SpectralEncoder(spec, found, options["ratio"], norm)
        else:
            blocks = [double_conv(found[s], inner[s], kernels[s], norm, bias=False) for s in down]
            self.spectral = SpatialEncoder(blocks, self.pools)
        self.bottom = double_conv(2 * inner[-1], widths[-1], kernels[-1], norm, bias=False)
        strides, skips = spec.strides, 2 if options["skip_ffc"] else 1
        self.ups = nn.ModuleList(transposed(widths[s + 1], widths[s], strides[s + 1], strides[s + 1]) for s in down)
        self.decoder = nn.ModuleList(
            double_conv(widths[s] + skips * inner[s], widths[s], kernels[s], norm, bias=False) for s in down
        )
        outputs = levels - 1 if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:outputs])

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the norm; every stage has two convolutions."""
        options, levels = cls.read_options(spec), len(spec.features)
        options["norm"] = options["norm"] or usual_norm(spec.dims)
        blocks = {"blocks_encoder": (2,) * levels, "blocks_decoder": (2,) * (levels - 1)}
        return spec.model_copy(update={**blocks, "options": options})

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the skips and the merged bottleneck, high to low resolution, for x (B, C, *S)."""
        spectral, merged = self.spectral(x)
        features = []
        for block, stride in zip(self.spatial, self.pools, strict=True):
            x = block(x)
            features.append(x)
            x = pool(x, stride)
        if self.options["skip_ffc"]:
            features = [torch.cat(pair, 1) for pair in zip(features, spectral, strict=True)]
        merge = interleave if self.options["cat_merge"] else concatenate
        return [*features, self.bottom(merge(x, merged))]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.ups))):
            x = self.decoder[level](torch.cat([self.ups[level](x), features[level]], 1))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]


class SpectralEncoder(nn.Module):
    """x (B, C, *S) -> the maps of all levels, local channels first, and the last one pooled."""

    def __init__(self, spec: NetworkSpec, widths: Sequence[int], ratio: float, norm: str):
        super().__init__()
        shares = [0, *(int(width * ratio) for width in widths[1:])]
        self.pools = spec.strides[1:]
        self.layers = nn.ModuleList(
            FourierConvolution(
                spec.dims, widths[level], widths[level + 1], shares[level], shares[level + 1], axes=axes, norm=norm
            )
            for level, axes in enumerate(map(transformed_axes, grids(spec)[:-1]))
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return maps and the pooled last one."""
        parts, maps = (x, None), []
        for layer, stride in zip(self.layers, self.pools, strict=True):
            parts = layer(*parts)
            maps.append(torch.cat([part for part in parts if part is not None], 1))
            parts = tuple(None if part is None else pool(part, stride) for part in parts)
        return maps, torch.cat([part for part in parts if part is not None], 1)


class SpatialEncoder(nn.Module):
    """A second encoder like the first: x (B, C, *S) -> the maps of all levels, and the last one pooled."""

    def __init__(self, blocks: list[nn.Module], pools: Sequence[Sequence[int]]):
        super().__init__()
        self.blocks, self.pools = nn.ModuleList(blocks), pools

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return maps and the pooled last one."""
        maps = []
        for block, stride in zip(self.blocks, self.pools, strict=True):
            x = block(x)
            maps.append(x)
            x = pool(x, stride)
        return maps, x


def encoder_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of an encoder for the widths of a plan: the last one is not doubled, the bottleneck's apart."""
    return (*widths[:-2], widths[max(0, len(widths) - 3)])


def transformed_axes(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of a grid that are transformed: all but those that are short and much shorter than others."""
    return tuple(axis for axis, edge in enumerate(grid) if edge >= min(TRANSFORMED_FROM, max(grid) / 2))


def pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the maxima of x (B, C, *S) in blocks of the stride."""
    return (nn.functional.max_pool2d, nn.functional.max_pool3d)[len(stride) - 2](x, tuple(stride))


def concatenate(a: Tensor, b: Tensor) -> Tensor:
    """Return both maps (B, C, *S) as (B, 2 C, *S)."""
    return torch.cat([a, b], 1)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Return the elements of both maps (B, C, *S) in turn, row-major, as (B, 2 C, *S)."""
    return torch.stack([a.flatten(1), b.flatten(1)], -1).reshape(len(a), -1, *a.shape[2:])
