"""Swin UNETR. Source: Hatamizadeh et al. 2022, arXiv:2201.01266; Swin-BOB: Bourigault et al. 2025, arXiv:2504.06908.

The network is MONAI's (Apache-2.0), which has to be installed: `pip install "autoseg-engine[monai]"`. This file takes
its sizes from the plan and splits it into encoder and decoder.

Taken from the plan: the patch, made a multiple of 32 along every axis (the shifted windows halve all axes five times,
coarse ones too), and the feature size: 48 where the plan has nnU-Net's 32 channels, else in proportion, in multiples
of 12 as the attention heads ask for. It has one output resolution, so deep supervision changes nothing. Options:
feature_size, depths (2, 2, 2, 2), heads (3, 6, 12, 24), window (7), checkpointing (trades time for memory).

Published optimiser: AdamW, learning rate 1e-4, weight decay 1e-5 (its recipe, used unless others are given).
Parameters with one channel, 14 outputs, feature size 48: published 62 187 296, here the same.

Swin-BOB is this network for whole-body MRI: `swin_bob` has its authors' recipe (a warm-up of 50 of 1 000 epochs, then a
cosine), half of the patches on foreground, and is to start from their weights, or anyone's with MONAI's tensor names:
`train --pretrained FILE`, safetensors or a torch file of tensors and plain values, the weights in its entry
"state_dict". They fit a feature size of 48. Of other labels the head starts fresh; for other image channels the first
kernels are adapted, which the authors leave out. Not taken: batches of 2, patches of 96 voxels, AMP; these are the
plan's. The authors' adaptation to each image (ETTA) works with every architecture: `predict --tta-adapt entropy`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

FEATURE_SIZE = 48
FEATURE_STEP = 12
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published size is scaled by
TOTAL_STRIDE = 32
DEFAULTS: dict[str, Any] = {
    "feature_size": None, "depths": [2, 2, 2, 2], "heads": [3, 6, 12, 24], "window": 7, "checkpointing": False,
}  # fmt: skip


@register.architecture("swin_unetr")
class SwinUNETR(Architecture):
    """Swin UNETR, 2D and 3D: shifted-window attention down, residual convolutions up. Needs MONAI."""

    defaults = DEFAULTS
    recipe = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 1e-5}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options = self.options
        multiple = self.patch_multiple(spec)
        if any(edge % step for edge, step in zip(spec.patch_size, multiple, strict=True)):
            raise UserError(
                f"this network takes patches that are multiples of {multiple}, this one is {spec.patch_size}"
            )
        self.network = _monai()(
            in_channels=spec.in_channels,
            out_channels=spec.num_outputs,
            feature_size=options["feature_size"] or _feature_size(spec),
            depths=tuple(options["depths"]),
            num_heads=tuple(options["heads"]),
            window_size=options["window"],
            use_checkpoint=options["checkpointing"],
            spatial_dims=spec.dims,
        )

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the feature size."""
        options = cls.read_options(spec)
        options["feature_size"] = options["feature_size"] or _feature_size(spec)
        return spec.model_copy(update={"options": options})

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return 32 for every axis; patches of no more than that get 64 on the last, so that norms have two voxels."""
        multiple = [TOTAL_STRIDE] * spec.dims
        if all(edge <= TOTAL_STRIDE for edge in spec.patch_size):
            multiple[-1] *= 2
        return tuple(multiple)

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under MONAI's names are those of the network inside."""
        if "swinViT.patch_embed.proj.weight" not in weights:
            return weights
        return {f"network.{name}": tensor for name, tensor in weights.items()}

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the refined maps at 1, 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution, for x (B, C, *S)."""
        network = self.network
        hidden = network.swinViT(x, network.normalize)
        refined = [network.encoder1(x), network.encoder2(hidden[0]), network.encoder3(hidden[1])]
        return [*refined, network.encoder4(hidden[2]), hidden[3], network.encoder10(hidden[4])]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        network = self.network
        x = features[-1]
        ups = (network.decoder5, network.decoder4, network.decoder3, network.decoder2, network.decoder1)
        for up, skip in zip(ups, reversed(features[:-1]), strict=True):
            x = up(x, skip)
        return network.out(x)


@register.architecture("swin_bob")
class SwinBOB(SwinUNETR):
    """Swin-BOB, 3D: Swin UNETR as published for whole-body MRI, to start from those weights. Needs MONAI."""

    dims = (3,)
    recipe = {**SwinUNETR.recipe, "foreground_fraction": 0.5, "warmup_share": 0.05, "annealing": "cosine"}


def _monai() -> type[nn.Module]:
    try:
        from monai.networks.nets import SwinUNETR as Network
    except ImportError as error:
        raise UserError(
            f"Swin UNETR needs MONAI, which cannot be imported: {error}",
            mend='python -m pip install "autoseg-engine[monai]"',
        ) from None
    return Network


def _feature_size(spec: NetworkSpec) -> int:
    wanted = FEATURE_SIZE * spec.features[0] / USUAL_WIDTH
    return FEATURE_STEP * max(1, round(wanted / FEATURE_STEP))
