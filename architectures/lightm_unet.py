"""LightM-UNet. Source: Liao et al. 2024, arXiv:2403.05246; written from the description, no code taken.

A residual U-Net whose encoder mixes voxels by Mamba layers in place of 3-convolutions; resolution falls by max-pooling
after a Mamba layer that doubles the channels. The decoder has depthwise-separable convolutions; skips are added. Every
Mamba layer normalises before and after the scan with the same LayerNorm.

Taken from the plan: the strides, of at most four resolutions as published (option `resolutions` for more), so a coarse
axis keeps its size where the plan keeps it. The width is that of the plan's first stage (published: 32) in multiples of
8, as its group norms ask for, and doubles per resolution. One output resolution: deep supervision changes nothing.

Options: width, resolutions (4), groups (8) of the group norms.

Follows the released code where the paper differs (a plain one-directional Mamba). The first stage scans all voxels:
light in parameters, not in time.
Published optimiser: Adam, learning rate 1e-4, epsilon 1e-5, weight decay 1e-5, gradient clip 12, float32 (its recipe,
used unless others are given); short runs want 1e-3. The Mamba layers' A_log and D are left out of the decay.

Parameters in 3D with one channel, three outputs: released code 5 015 766 (the paper says 1.87 M), here 5 015 766.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.mamba import Mamba
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

RESOLUTIONS = 4
BLOCKS = 2  # residual blocks of a resolution, but for the first and the last
FIRST_BLOCKS, LAST_BLOCKS = 1, 4
GROUPS = 8


@register.architecture("lightm_unet")
class LightMUNet(Architecture):
    """LightM-UNet, 2D and 3D: residual Mamba layers down, depthwise-separable convolutions up, skips added."""

    defaults = {"width": None, "resolutions": RESOLUTIONS, "groups": GROUPS}
    recipe = {
        "optimizer": "adam", "learning_rate": 1e-4, "epsilon": 1e-5, "weight_decay": 1e-5, "own_decay": True,
        "gradient_clip": 12.0, "precision": "fp32",
    }  # fmt: skip

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, groups = spec.dims, spec.features, self.options["groups"]
        if widths[0] % groups:
            raise UserError(
                f"{groups} groups do not divide the width {widths[0]}", where="network.options.groups",
                mend=f"a width that is a multiple of {groups}, or other groups",
            )  # fmt: skip
        self.entry = separable(dims, spec.in_channels, widths[0], 3)
        self.downs = nn.ModuleList(
            DownLayer(widths[level - 1], widths[level], spec.strides[level]) for level in range(1, len(widths))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualMamba(width, groups) for _ in range(blocks)))
            for width, blocks in zip(widths, spec.blocks_encoder, strict=True)
        )
        self.ups = nn.ModuleList(
            UpBlock(dims, widths[level + 1], widths[level], groups) for level in range(len(widths) - 1)
        )
        self.head = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.ReLU(), separable(dims, widths[0], spec.num_outputs, 1, bias=True)
        )

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the first resolutions; widths double from the option's or the plan's, a multiple of the groups."""
        options = cls.read_options(spec)
        levels = min(len(spec.features), options["resolutions"])
        groups = options["groups"]
        width = options["width"] or groups * max(1, round(spec.features[0] / groups))
        blocks = [FIRST_BLOCKS, *[BLOCKS] * max(0, levels - 2), LAST_BLOCKS]
        return spec.model_copy(
            update={
                "strides": spec.strides[:levels],
                "kernel_sizes": ((3,) * spec.dims,) * levels,
                "features": tuple(width * 2**level for level in range(levels)),
                "blocks_encoder": tuple(blocks[:levels]),
                "blocks_decoder": (1,) * (levels - 1),
                "options": {**options, "width": width},
            }
        )

    def undecayed(self) -> set[str]:
        """Return the logarithms of the scans' rates, and the weights of what passes them by."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D"))}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per resolution, high to low, for x (B, C, *S)."""
        features, x = [], self.entry(x)
        for number, stage in enumerate(self.stages):
            x = stage(self.downs[number - 1](x) if number else x)
            features.append(x)
        return features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        x = features[-1]
        for up, skip in zip(reversed(self.ups), reversed(features[:-1]), strict=True):
            x = up(x, skip)
        return self.head(x)


def separable(dims: int, before: int, after: int, kernel: int, *, bias: bool = False) -> nn.Sequential:
    """Return a depthwise convolution and a 1-convolution: (B, before, *S) -> (B, after, *S)."""
    conv, _, _ = conv_classes(dims)
    return nn.Sequential(
        conv(before, before, kernel, padding=kernel // 2, groups=before, bias=bias), conv(before, after, 1, bias=bias)
    )


class MambaLayer(nn.Module):
    """LayerNorm, Mamba plus its scaled input, the same LayerNorm, Linear, over the voxels of x (B, before, *S).

    Gives (B, after, *S), computed in float32 also under autocast.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm = nn.LayerNorm(before)
        self.mamba = Mamba(before)
        self.scale = nn.Parameter(torch.ones(1))
        self.project = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(self.scale.dtype).flatten(2).mT  # row-major
            mixed = self.mamba(self.norm(tokens)) + self.scale * tokens
            return self.project(self.norm(mixed)).mT.unflatten(2, x.shape[2:])


class DownLayer(nn.Module):
    """A Mamba layer to more channels, then max-pooling: (B, before, *S) -> (B, after, *S / stride)."""

    def __init__(self, before: int, after: int, stride: tuple[int, ...]):
        super().__init__()
        self.mix = MambaLayer(before, after)
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[len(stride) - 2](stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        return self.pool(self.mix(x))


class ResidualMamba(nn.Module):
    """x (B, C, *S) plus two Mamba layers, each behind group norm and ReLU."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.mix1 = MambaLayer(width, width)
        self.norm2 = nn.GroupNorm(groups, width)
        self.mix2 = MambaLayer(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.mix1(nn.functional.relu(self.norm1(x)))
        return x + self.mix2(nn.functional.relu(self.norm2(y)))


class UpBlock(nn.Module):
    """1-convolution, linear up-sampling, the skip added, then a separable convolution plus its scaled input."""

    def __init__(self, dims: int, before: int, after: int, groups: int):
        super().__init__()
        self.narrow = conv_classes(dims)[0](before, after, 1, bias=False)
        self.mode = ("bilinear", "trilinear")[dims - 2]
        self.norm1 = nn.GroupNorm(groups, after)
        self.conv = separable(dims, after, after, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.norm2 = nn.GroupNorm(groups, after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, after, *S) for x (B, before, *S / stride) and the skip (B, after, *S)."""
        x = nn.functional.interpolate(self.narrow(x), size=skip.shape[2:], mode=self.mode) + skip
        y = self.conv(nn.functional.relu(self.norm1(x))) + self.scale * x
        return nn.functional.relu(self.norm2(y))
