"""autoseg model folder -> results folders that nnunetv2 predicts from."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from autoseg.errors import UserError
from autoseg.interop.folders import new_folders, refuse_model_folder
from autoseg.interop.names import NAME, checked_name
from autoseg.interop.nnunet_plans import ARCHITECTURES, BLOCKS, DEFAULTS, LAYERS, ORDERS, PREPROCESSOR, RESAMPLING
from autoseg.interop.nnunet_plans import SCHEMES as SCHEMES_HERE
from autoseg.labels import Labels
from autoseg.model_folder import MODEL_FILE, Member, Model, read_member_plans, read_model
from autoseg.network_room import check_patch
from autoseg.plans import Configuration, Plans
from autoseg.plugins import build_network, load_installed
from autoseg.storage import write_bytes, write_json
from autoseg.workspace import DATASET_NAME

log = logging.getLogger(__name__)

TRAINER = "nnUNetTrainer"
SCHEMES = {ours: theirs for theirs, ours in SCHEMES_HERE.items()}
CLASSES = {ours: f"dynamic_network_architectures.architectures.unet.{name}" for name, ours in ARCHITECTURES.items()}
MODULES = {"conv_op": "torch.nn.modules.conv", "norm_op": "torch.nn.modules.instancenorm", "nonlin": "torch.nn"}
TIFFS = (".tif", ".tiff")
PICTURES = (".png", ".bmp", ".jpg", ".jpeg", *TIFFS)
PLANNERS = {"plain_unet": "ExperimentPlanner", "residual_encoder_unet": "ResEncUNetPlanner"}


def export_nnunet(model_folder: Path | str, output: Path | str) -> list[Path]:
    """Write every member of a model folder as nnU-Net results to `output`, and return their folders.

    The folders are `output/DATASET/nnUNetTrainer__PLANS__CONFIGURATION`, so `output` can be nnU-Net's nnUNet_results;
    other results in it are left alone, and a folder of the same name is a UserError.
    Checkpoints are written with torch.save and hold tensors and plain types only. Labels are numbered 0, 1, 2, ... as
    nnU-Net asks for, unless they are regions. Raises UserError for networks that nnU-Net cannot build.
    """
    folder, output = Path(model_folder), Path(output)
    model = read_model(folder)
    refuse_model_folder(output, folder)
    for member in model.members:
        _check_member(member, folder)
    name = _dataset_name(model.dataset_name)
    description = _description(model, name)
    plans = [read_member_plans(folder, member) for member in model.members]
    for member, own in zip(model.members, plans, strict=True):
        checked_name(own.plans_name, "plans_name", folder / member.plans_file)
    names = [
        f"{name}/{TRAINER}__{_plans_name(own)}__{member.configuration}"
        for member, own in zip(model.members, plans, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UserError("two members would be written to one folder", where=folder, mend="export them one by one")
    with new_folders(output, names) as new:
        for member, own, target in zip(model.members, plans, names, strict=True):
            _write_member(folder, model, member, own, description, new / target)
            if member.in_ensemble:
                _write_postprocessing(model, new / target)
    _tell(model)
    return [output / target for target in names]


def _check_member(member: Member, folder: Path) -> None:
    if member.architecture not in CLASSES or member.plugin_source is not None or member.network_options:
        raise UserError(
            f"member {member.name!r} has architecture {member.architecture!r}; nnU-Net can build {', '.join(CLASSES)}",
            where=folder,
            mend="use `autoseg export --format onnx`, which takes any architecture",
        )
    checked_name(member.configuration, "configuration", folder / MODEL_FILE)
    for fold in member.folds:
        checked_name(fold, "fold", folder / MODEL_FILE)


def _write_member(
    folder: Path, model: Model, member: Member, plans: Plans, description: Mapping[str, Any], target: Path
) -> None:
    configuration = plans.configuration(member.configuration)
    kind = load_installed("architecture", member.architecture)
    check_patch(configuration, kind, where=folder / member.plans_file)
    network = build_network(member.architecture, configuration.network, installed=True)
    theirs = _plans(plans, configuration, member, model, description)
    write_json(target / "plans.json", theirs)
    write_json(target / "dataset.json", description)
    order = _output_order(model.labels)
    for fold, file in member.folds.items():
        network.load_state_dict(load_file(folder / file))
        weights = network.nnunet_state_dict()
        weights = {name: _reordered(name, value, order) for name, value in weights.items()}
        (target / f"fold_{fold}").mkdir()
        content = {
            "network_weights": weights,
            "optimizer_state": {},
            "grad_scaler_state": None,
            "logging": {},
            "_best_ema": None,
            "current_epoch": 0,
            "init_args": {
                "plans": theirs,
                "configuration": configuration.name,
                "fold": int(fold) if fold.isdecimal() else fold,
                "dataset_json": dict(description),
            },
            "trainer_name": TRAINER,
            "inference_allowed_mirroring_axes": tuple(member.mirror_axes) or None,  # () fails there
        }
        buffer = io.BytesIO()  # torch tells of a full disk as a defect of its own
        torch.save(content, buffer)
        write_bytes(target / f"fold_{fold}" / "checkpoint_final.pth", buffer.getvalue())


def _plans(
    plans: Plans, configuration: Configuration, member: Member, model: Model, description: Mapping[str, Any]
) -> dict[str, Any]:
    """Return nnU-Net's plans with one configuration, and the name alone of the stages before and after it."""
    intensities = {str(channel): values.model_dump() for channel, values in enumerate(plans.intensities)}
    return {
        "dataset_name": description["name"],
        "plans_name": _plans_name(plans),
        "original_median_spacing_after_transp": list(plans.original_median_spacing),
        "original_median_shape_after_transp": [round(size) for size in plans.original_median_shape],
        "image_reader_writer": _reader(model),
        "transpose_forward": list(plans.transpose_forward),
        "transpose_backward": list(plans.transpose_backward),
        "configurations": {configuration.name: _configuration(configuration, member)},
        "experiment_planner_used": PLANNERS[member.architecture],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": intensities,
    }


def _configuration(configuration: Configuration, member: Member) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "data_identifier": configuration.data_identifier,
        "preprocessor_name": PREPROCESSOR,
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing),
        "normalization_schemes": [SCHEMES[scheme] for scheme in configuration.normalization],
        "use_mask_for_norm": list(configuration.use_mask),
        "batch_dice": configuration.batch_dice,
        "architecture": _architecture(configuration, member),
    }
    for kind, order in ORDERS.items():
        fields[f"resampling_fn_{kind}"] = RESAMPLING
        fields[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None
        }  # fmt: skip
    if member.previous_stage is not None:
        fields["previous_stage"] = configuration.previous_stage
    if configuration.next_stage is not None:
        fields["next_stage"] = configuration.next_stage
    return fields


def _architecture(configuration: Configuration, member: Member) -> dict[str, Any]:
    spec = configuration.network
    layers = {key: f"{MODULES[key]}.{name.format(spec.dims)}" for key, name in LAYERS.items()}
    arguments = {
        "n_stages": len(spec.features),
        "features_per_stage": list(spec.features),
        "conv_op": layers["conv_op"],
        "kernel_sizes": [list(kernel) for kernel in spec.kernel_sizes],
        "strides": [list(stride) for stride in spec.strides],
        BLOCKS[member.architecture]: list(spec.blocks_encoder),
        "n_conv_per_stage_decoder": list(spec.blocks_decoder),
        "conv_bias": True,
        "norm_op": layers["norm_op"],
        "norm_op_kwargs": DEFAULTS["norm_op_kwargs"],
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": layers["nonlin"],
        "nonlin_kwargs": DEFAULTS["nonlin_kwargs"],
    }
    return {
        "network_class_name": CLASSES[member.architecture],
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _description(model: Model, name: str) -> dict[str, Any]:
    """Return dataset.json; entries of regions stand in the order in which nnU-Net paints them."""
    labels = model.labels
    values: dict[str, Any] = {"background": 0}
    fields: dict[str, Any] = {}
    if labels.regions:
        if labels.background != 0:
            raise UserError(f"background has value {labels.background}, nnU-Net needs 0", where="labels")
        values |= {region: list(labels.values[region]) for region in labels.paint_order}
        fields["regions_class_order"] = list(labels.paint_values)
        highest = max(labels.foreground_values)
    else:
        values |= {label: position + 1 for position, label in enumerate(labels.names)}
        highest = len(labels.names)
    if labels.ignore:
        values["ignore"] = highest + 1
    return {
        "name": name,
        "channel_names": {str(channel): text for channel, text in enumerate(model.channel_names)},
        "labels": values,
        **fields,
        "numTraining": 0,
        "file_ending": model.file_ending,
    }


def _output_order(labels: Labels) -> list[int] | None:
    """Return which output of the network nnU-Net's outputs are, or None if they are the same."""
    if not labels.regions:
        return None
    order = [labels.names.index(name) for name in labels.paint_order]
    return None if order == sorted(order) else order


def _reordered(name: str, value: torch.Tensor, order: list[int] | None) -> torch.Tensor:
    return value if order is None or "seg_layers." not in name else value[order].contiguous()


def _reader(model: Model) -> str:
    if model.orientation == "ras":
        return "NibabelIOWithReorient"
    ending = model.file_ending.lower()
    if ending in TIFFS and model.dims_of_data == 3:
        return "Tiff3DIO"
    return "NaturalImage2DIO" if ending in PICTURES else "SimpleITKIO"


def _dataset_name(name: str) -> str:
    return (
        name
        if DATASET_NAME.fullmatch(name) and NAME.fullmatch(name)
        else f"Dataset999_{re.sub(r'[^A-Za-z0-9]+', '', name) or 'Model'}"
    )


def _plans_name(plans: Plans) -> str:
    """Return a plans name without double underscores, at which nnU-Net splits folder names."""
    return re.sub(r"_+", "_", plans.plans_name)


def _write_postprocessing(model: Model, folder: Path) -> None:
    """Write the steps as nnU-Net's postprocessing.json has them."""
    if not model.postprocessing:
        return
    raw = dict(enumerate(_numbers(model.labels), start=1))
    steps = [{"labels_or_regions": [raw[value] for value in step.values]} for step in model.postprocessing]
    functions = ["remove_all_but_largest_component_from_segmentation"] * len(steps)
    write_json(folder / "postprocessing.json", {"postprocessing_fns": functions, "postprocessing_kwargs": steps})


def _numbers(labels: Labels) -> tuple[int, ...]:
    """Return the values that nnU-Net's label maps will have for the internal values 1, 2, ..."""
    return labels.foreground_values if labels.regions else tuple(range(1, len(labels.foreground_values) + 1))


def _tell(model: Model) -> None:
    """Name what nnU-Net will do differently with this model."""
    if _numbers(model.labels) != model.labels.foreground_values or model.labels.background != 0:
        table = zip(model.labels.foreground_values, _numbers(model.labels), strict=True)
        log.warning("nnU-Net's label maps will have other values: %s", ", ".join(f"{a} -> {b}" for a, b in table))
    if model.postprocessing:
        log.warning("nnUNetv2_predict does no post-processing; the steps are in postprocessing.json")
    if sum(member.in_ensemble for member in model.members) > 1:
        log.warning("predict with each folder and --save_probabilities, then average them with nnUNetv2_ensemble")
