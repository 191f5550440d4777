"""Small results folders as nnU-Net writes them, with fresh weights of the library that nnU-Net builds networks from."""

import copy
import json
import sys
from importlib.util import find_spec
from unittest import mock

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

KINDS = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}


def network_fields(dims, *, kind="PlainConvUNet", features=(4, 8)):
    """Return nnU-Net's `architecture` entry of a small U-Net."""
    stages = len(features)
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
            blocks: [2] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(entry, inputs, outputs):
    """Return the network as nnU-Net builds it."""
    arguments = dict(entry["arch_kwargs"])
    dims = int(arguments["conv_op"][-2])
    arguments |= {
        "conv_op": (nn.Conv2d, nn.Conv3d)[dims - 2],
        "norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2],
        "nonlin": nn.LeakyReLU,
    }
    kind = entry["network_class_name"].rpartition(".")[2]
    return KINDS[kind](input_channels=inputs, num_classes=outputs, **arguments)


def description(labels, *, channels=("MRI",), regions_class_order=None, ending=".nii.gz"):
    fields = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 3,
        "file_ending": ending,
    }
    return fields if regions_class_order is None else {**fields, "regions_class_order": regions_class_order}


def configuration(dims=3, *, channels=1, **changes):
    fields = {
        "data_identifier": f"nnUNetPlans_{dims}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * dims,
        "median_image_size_in_voxels": [20.0] * dims,
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "batch_dice": False,
        "architecture": network_fields(dims),
    }
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        fields[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        fields[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None
        }  # fmt: skip
    return {**fields, **changes}


def plans(configurations, *, channels=1, **changes):
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    return {
        "dataset_name": "Dataset007_Small",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 20, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        **changes,
    }


def write_results(
    folder, plans, description, name, *, inputs=1, outputs=3, folds=(0,), trainer="nnUNetTrainer", axes=(0, 1, 2),
    checkpoint="checkpoint_final.pth", entry=None, edit=lambda weights: weights,
):  # fmt: skip
    """Write `folder/TRAINER__nnUNetPlans__NAME`; returns that folder and the network of its last fold."""
    target = folder / f"{trainer}__{plans['plans_name']}__{name}"
    entry = entry or plans["configurations"][name]["architecture"]
    network = None
    for fold in folds:
        torch.manual_seed(len(str(fold)) + inputs)
        network = build(entry, inputs, outputs)
        (target / f"fold_{fold}").mkdir(parents=True)
        content = {
            "network_weights": edit(network.state_dict()),
            "optimizer_state": {"state": {}},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": []},
            "_best_ema": None,
            "current_epoch": 1000,
            "init_args": {"plans": plans, "configuration": name, "fold": fold, "dataset_json": description},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": axes,
        }
        torch.save(content, target / f"fold_{fold}" / checkpoint)
    (target / "plans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(json.dumps(description))
    return target, network


def changed(content, path, value):
    """Return a deep copy of nested dictionaries with one value set, or removed where it is `...`."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is ...:
        inner.pop(last)
    else:
        inner[last] = value
    return content


def read_checkpoint(path):
    """Return all that a checkpoint of nnU-Net holds, as torch reads it; numpy 1 may not know numpy 2's names in it."""
    names = {} if find_spec("numpy._core") else {"numpy._core": np.core, "numpy._core.multiarray": np.core.multiarray}
    with mock.patch.dict(sys.modules, names):
        return torch.load(path, weights_only=False)
