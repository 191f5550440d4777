"""The starter files of `autoseg new`; NAME and CLASS are filled in."""

from __future__ import annotations

TRAINER = '''"""What the method does, in one sentence. Source: authors year, arXiv:0000.00000."""

from autoseg import Trainer, register
from autoseg.losses import dice_loss, focal_loss


@register.trainer("NAME")
class CLASS(Trainer):
    """What it is for, what a step costs, and what it reached on which public data set."""

    foreground_fraction: float = 0.66  # share of patches centred on foreground, 0..1
    focal_gamma: float = 2.0  # 0 gives plain cross-entropy

    def loss(self, logits, target):
        """Logits (B, K, *S) float, target (B, *S) int in 0..K-1 -> scalar."""
        ignore = self.labels.ignore_index  # None in data sets without an ignore label
        dice = dice_loss(logits, target, ignore_index=ignore)
        return dice + focal_loss(logits, target, gamma=self.focal_gamma, ignore_index=ignore)
'''

PLANNER = '''"""What is planned differently, in one sentence. Source: authors year, arXiv:0000.00000."""

from autoseg import Planner, register
from autoseg.plans import TrainingPlan


@register.planner("NAME")
class CLASS(Planner):
    """What it is for, what it needs, and what it reached on which public data set."""

    architecture: str = "plain_unet"
    memory_gib: float = 8.0  # planned for when the user names no memory
    base_features: int = 24  # channels of the first stage, doubled per stage

    def training(self, sized, frame):
        """Return the training recipe of one configuration: half of nnU-Net's steps."""
        return TrainingPlan(steps=125_000)
'''

ARCHITECTURE = '''"""A plain U-Net in one screen. Source: Ronneberger et al. 2015, arXiv:1505.04597."""

import torch
from torch import nn

from autoseg import Architecture, register


def block(dims, channels_in, channels_out, stride):
    """Convolution with a stride, instance norm, leaky ReLU."""
    conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
    return nn.Sequential(
        conv(channels_in, channels_out, 3, stride, padding=1), norm(channels_out, affine=True), nn.LeakyReLU()
    )


@register.architecture("NAME")
class CLASS(Architecture):
    """x (B, C, *S) -> logits (B, K, *S); every size comes from the spec."""

    dims = (2, 3)

    def __init__(self, spec):
        super().__init__(spec)
        conv, up = ((nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))[spec.dims - 2]
        widths = [spec.in_channels, *spec.features]
        self.down = nn.ModuleList(
            block(spec.dims, before, after, stride)
            for before, after, stride in zip(widths[:-1], widths[1:], spec.strides, strict=True)
        )
        deepest_first = list(zip(spec.features[:-1], spec.features[1:], spec.strides[1:], strict=True))[::-1]
        self.up = nn.ModuleList(up(low, high, stride, stride) for high, low, stride in deepest_first)
        self.merge = nn.ModuleList(block(spec.dims, 2 * high, high, 1) for high, _, _ in deepest_first)
        self.heads = nn.ModuleList(conv(high, spec.num_outputs, 1) for high, _, _ in deepest_first)

    def encode(self, x):
        """Return one feature map per stage, high to low resolution."""
        features = []
        for stage in self.down:
            x = stage(x)
            features.append(x)
        return features

    def decode(self, features):
        """Return logits, or the list of them, highest resolution first, when training with deep supervision."""
        x, outputs = features[-1], []
        for up, merge, head, skip in zip(self.up, self.merge, self.heads, features[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
            outputs.append(head(x))
        return outputs[::-1] if self.training and self.spec.deep_supervision else outputs[-1]
'''

STARTERS = {"trainer": TRAINER, "planner": PLANNER, "architecture": ARCHITECTURE}
