"""The two networks: nnU-Net's plain U-Net of the default plan, and that of the residual encoder preset L."""

from __future__ import annotations

from typing import Any

from gpu_parts.sizes import Sizes

STAGES = 6
NETWORKS = {  # architecture, convolutions or blocks per stage of the encoder, convolutions per stage of the decoder
    "plain": ("plain_unet", (2,) * STAGES, (2,) * (STAGES - 1)),
    "resenc_l": ("residual_encoder_unet", (1, 3, 4, 6, 6, 6), (1,) * (STAGES - 1)),
}


def strides(sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """Return the strides of the stages: down to edges of 4 voxels, or as far as a toy goes."""
    last = 2 if sizes.patch[0] >= 64 else 1
    return ((1,) * 3, *[(2,) * 3] * (STAGES - 2), (last,) * 3)


def network_spec(sizes: Sizes, name: str, *, outputs: int) -> Any:
    """Return autoseg's description of a network."""
    from autoseg.plans import NetworkSpec

    _, encoder, decoder = NETWORKS[name]
    return NetworkSpec(
        dims=3, in_channels=1, num_outputs=outputs, patch_size=sizes.patch, strides=strides(sizes),
        kernel_sizes=((3,) * 3,) * STAGES, features=sizes.features, blocks_encoder=encoder, blocks_decoder=decoder,
    )  # fmt: skip


def nnunet_network(sizes: Sizes, name: str, *, outputs: int) -> Any:
    """Return the network as nnU-Net's plans build it, with deep supervision."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    _, encoder, decoder = NETWORKS[name]
    kind, blocks = PlainConvUNet, "n_conv_per_stage"
    if name == "resenc_l":
        kind, blocks = ResidualEncoderUNet, "n_blocks_per_stage"
    return kind(
        input_channels=1, n_stages=STAGES, features_per_stage=list(sizes.features), conv_op=torch.nn.Conv3d,
        kernel_sizes=[[3] * 3] * STAGES, strides=[list(stride) for stride in strides(sizes)], num_classes=outputs,
        n_conv_per_stage_decoder=list(decoder), conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=True, **{blocks: list(encoder)},
    )  # fmt: skip


def nnunet_plans(sizes: Sizes, name: str, dataset: str) -> dict[str, Any]:
    """Return nnU-Net's plans with this one network."""
    from sides.material import plain_plans

    plans = plain_plans((1.0,) * 3)
    fields = plans["configurations"]["3d_fullres"]
    fields |= {"patch_size": list(sizes.patch), "batch_size": 2, "normalization_schemes": ["ZScoreNormalization"]}
    arguments = fields["architecture"]["arch_kwargs"]
    _, encoder, decoder = NETWORKS[name]
    convolutions = arguments.pop("n_conv_per_stage")
    assert len(convolutions) == 2  # those of the material that this stands on
    arguments |= {
        "n_stages": STAGES, "features_per_stage": list(sizes.features), "kernel_sizes": [[3] * 3] * STAGES,
        "strides": [list(stride) for stride in strides(sizes)], "n_conv_per_stage_decoder": list(decoder),
    }  # fmt: skip
    if name == "resenc_l":
        architectures = "dynamic_network_architectures.architectures.unet"
        fields["architecture"]["network_class_name"] = f"{architectures}.ResidualEncoderUNet"
        arguments["n_blocks_per_stage"] = list(encoder)
    else:
        arguments["n_conv_per_stage"] = list(encoder)
    return {**plans, "dataset_name": dataset, "continue_training": False}
