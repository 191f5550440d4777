"""nnU-Net's plans.json -> autoseg's Plans. What autoseg does not do in the same way is refused, by field and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.interop.names import checked_name
from autoseg.interop.nnunet_checks import check_plans, check_transposes, parse_as_theirs, stage_count
from autoseg.labels import Labels
from autoseg.plans import Configuration, NetworkSpec, Plans

SCHEMES = {
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
ARCHITECTURES = {"PlainConvUNet": "plain_unet", "ResidualEncoderUNet": "residual_encoder_unet"}
BLOCKS = {"plain_unet": "n_conv_per_stage", "residual_encoder_unet": "n_blocks_per_stage"}
RESAMPLING = "resample_data_or_seg_to_shape"
ORDERS = {"data": 3, "seg": 1, "probabilities": 1}
PREPROCESSOR = "DefaultPreprocessor"
REORIENTING_READERS = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO", *REORIENTING_READERS)
LAYERS = {"conv_op": "Conv{}d", "norm_op": "InstanceNorm{}d", "nonlin": "LeakyReLU"}
# Values that leave the network as it is here; None: the argument must be absent or null.
DEFAULTS: dict[str, Any] = {
    "conv_bias": True,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin_kwargs": {"inplace": True},
    "nonlin_first": False,
    "deep_supervision": False,
    "stem_channels": None,
    "bottleneck_channels": None,
    "stochastic_depth_p": 0.0,
    "squeeze_excitation": False,
    "dropout_op": None,
    "dropout_op_kwargs": None,
}


def channel_names(description: Mapping[str, Any], where: str | Path) -> tuple[str, ...]:
    """Return the channel names of a dataset.json in their order."""
    fields = description.get("channel_names", description.get("modality"))
    if not isinstance(fields, Mapping) or not fields or not all(str(key).isdecimal() for key in fields):
        raise UserError(f"field channel_names must be an object like {{'0': 'CT'}}, got {fields!r}", where=where)
    return tuple(str(fields[key]) for key in sorted(fields, key=int))


def resolve(plans: Mapping[str, Any], name: str, where: str | Path) -> dict[str, Any]:
    """Return a configuration with what it inherits filled in, in nnU-Net's present format."""
    configurations, fields, chain = plans.get("configurations"), {}, []
    current: str | None = name
    while current is not None:
        if not isinstance(configurations, Mapping) or not isinstance(configurations.get(current), Mapping):
            raise UserError(f"the plans have no configuration {current!r}", where=where)
        if current in chain:
            raise UserError(f"configurations {chain} inherit from one another", where=where)
        chain.append(current)
        fields = {**configurations[current], **fields}
        current = configurations[current].get("inherits_from")
    return fields if "architecture" in fields else {**fields, "architecture": _of_old_plans(fields, where)}


def _of_old_plans(fields: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """Return the architecture entry of a configuration written before nnU-Net v2.4."""
    try:
        kind, dims = fields["UNet_class_name"], len(fields["patch_size"])
        blocks = BLOCKS[ARCHITECTURES[kind]] if kind in ARCHITECTURES else "blocks"
        stages = len(fields["n_conv_per_stage_encoder"])
        base, most = fields["UNet_base_num_features"], fields["unet_max_num_features"]
        arguments = {
            "n_stages": stages,
            "features_per_stage": [min(base * 2**stage, most) for stage in range(stages)],
            "kernel_sizes": fields["conv_kernel_sizes"],
            "strides": fields["pool_op_kernel_sizes"],
            blocks: fields["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": fields["n_conv_per_stage_decoder"],
            **{key: value.format(dims) for key, value in LAYERS.items()},
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"the configuration has no field architecture, nor the older {error}", where=where) from None
    return {"network_class_name": kind, "arch_kwargs": arguments}


def read_plans(
    theirs: Mapping[str, Any], description: Mapping[str, Any], labels: Labels, name: str, where: Path
) -> Plans:
    """Return Plans with the one configuration `name` of nnU-Net's plans; refuses what would not predict the same."""
    try:
        return _read_plans(theirs, description, labels, name, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"a field is missing or of the wrong kind ({error!r})", where=where) from None


def _read_plans(
    theirs: Mapping[str, Any], description: Mapping[str, Any], labels: Labels, name: str, where: Path
) -> Plans:
    fields = resolve(theirs, name, where)
    _check_processing(theirs, fields, where)
    check_transposes(theirs["transpose_forward"], theirs["transpose_backward"], where)
    channels = channel_names(description, where)
    previous = fields.get("previous_stage") or None
    inputs = len(channels) + (len(labels.foreground_values) if previous else 0)
    architecture, spec = _network(fields, inputs, labels.num_outputs, where)
    following = fields.get("next_stage") or None
    following = following if following is None or isinstance(following, str) else following[0]
    identifier = fields.get("data_identifier", f"{theirs['plans_name']}_{name}")
    for field, part in (("dataset_name", theirs["dataset_name"]), ("plans_name", theirs["plans_name"])):
        checked_name(part, field, where)
    for field, part in (("previous_stage", previous), ("next_stage", following), ("data_identifier", identifier)):
        if part is not None:
            checked_name(part, f"configurations.{name}.{field}", where)
    configuration = {
        "name": name,
        "dims": spec["dims"],
        "spacing": fields["spacing"],
        "median_shape": fields["median_image_size_in_voxels"],
        "patch_size": fields["patch_size"],
        "batch_size": fields["batch_size"],
        "batch_dice": bool(fields.get("batch_dice", False)),
        "normalization": [SCHEMES[scheme] for scheme in fields["normalization_schemes"]],
        "use_mask": fields["use_mask_for_norm"],
        "data_identifier": identifier,
        "architecture": architecture,
        "network": spec,
        "previous_stage": previous,
        "next_stage": following,
    }
    own = {
        "dataset_name": theirs["dataset_name"],
        "plans_name": theirs["plans_name"],
        "planner": str(theirs.get("experiment_planner_used", "nnU-Net")),
        "transpose_forward": theirs["transpose_forward"],
        "transpose_backward": theirs["transpose_backward"],
        "original_median_spacing": theirs["original_median_spacing_after_transp"],
        "original_median_shape": theirs["original_median_shape_after_transp"],
        "intensities": _intensities(theirs, fields["normalization_schemes"], len(channels), where),
        "channel_names": channels,
        "configurations": {
            name: parse_as_theirs(Configuration, configuration, where, within=f"configurations.{name}").model_dump()
        },
        "notes": (f"imported from nnU-Net's plans {theirs['plans_name']}",),
    }
    plans = parse_as_theirs(Plans, own, where)
    check_plans(plans, where)
    return plans


def _intensities(theirs: Mapping[str, Any], schemes: Any, channels: int, where: Path) -> list[dict[str, Any]]:
    """Return the intensities of every channel; what is no number is 0 where only CT would use it."""
    key = "foreground_intensity_properties_per_channel"
    found = theirs.get(key, theirs.get("foreground_intensity_properties_by_modality"))
    names = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
    values = [{name: found[str(channel)][name] for name in names} for channel in range(channels)]
    for channel, (scheme, each) in enumerate(zip(schemes, values, strict=False)):
        odd = [name for name, value in each.items() if isinstance(value, float) and not math.isfinite(value)]
        if odd and scheme == "CTNormalization":
            raise UserError(f"field {key}.{channel} holds a number that is not finite", where=where)
        each.update(dict.fromkeys(odd, 0.0))
    return values


def _check_processing(theirs: Mapping[str, Any], fields: Mapping[str, Any], where: Path) -> None:
    """Refuse preprocessing and resampling that autoseg does not do."""
    _same("image_reader_writer", theirs.get("image_reader_writer", READERS[0]), READERS, where)
    _same("label_manager", theirs.get("label_manager", "LabelManager"), ("LabelManager",), where)
    _same("preprocessor_name", fields.get("preprocessor_name", PREPROCESSOR), (PREPROCESSOR,), where)
    for scheme in fields["normalization_schemes"]:
        _same("normalization_schemes", scheme, tuple(SCHEMES), where)
    for kind, order in ORDERS.items():
        _same(f"resampling_fn_{kind}", fields.get(f"resampling_fn_{kind}", RESAMPLING), (RESAMPLING,), where)
        given = fields.get(f"resampling_fn_{kind}_kwargs", {})
        wanted = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        for key, value in given.items():
            _same(f"resampling_fn_{kind}_kwargs.{key}", value, (wanted.get(key, "nothing"),), where)


def _network(fields: Mapping[str, Any], inputs: int, outputs: int, where: Path) -> tuple[str, dict[str, Any]]:
    """Return the architecture's name and the fields of its NetworkSpec."""
    entry = fields["architecture"]
    kind = str(entry["network_class_name"]).rpartition(".")[2]
    _same("architecture.network_class_name", kind, tuple(ARCHITECTURES), where)
    architecture, arguments, dims = ARCHITECTURES[kind], dict(entry["arch_kwargs"]), len(fields["patch_size"])
    for key, layer in LAYERS.items():
        _same(f"architecture.{key}", str(arguments.pop(key)).rpartition(".")[2], (layer.format(dims),), where)
    stages = stage_count(arguments.pop("n_stages"), where)
    spec = {
        "dims": dims,
        "in_channels": inputs,
        "num_outputs": outputs,
        "patch_size": fields["patch_size"],
        "strides": _per_axis(arguments.pop("strides"), stages, dims),
        "kernel_sizes": _per_axis(arguments.pop("kernel_sizes"), stages, dims),
        "features": _per_stage(arguments.pop("features_per_stage"), stages),
        "blocks_encoder": _per_stage(arguments.pop(BLOCKS[architecture]), stages),
        "blocks_decoder": _per_stage(arguments.pop("n_conv_per_stage_decoder"), stages - 1),
    }
    for key, value in arguments.items():
        if key not in DEFAULTS:
            raise UserError(f"field architecture.{key} = {value!r} is not known here", where=where)
        if key in ("deep_supervision", "dropout_op_kwargs"):
            continue  # neither changes the network at inference
        if isinstance(value, Mapping) and isinstance(DEFAULTS[key], Mapping):
            for name, number in value.items():
                _same(f"architecture.{key}.{name}", number, (DEFAULTS[key].get(name, "nothing"),), where)
        else:
            _same(f"architecture.{key}", value, (DEFAULTS[key],), where)
    within = "architecture.arch_kwargs"
    return architecture, parse_as_theirs(NetworkSpec, spec, where, within=within).model_dump()


def _per_stage(value: Any, stages: int) -> list[int]:
    return [value] * stages if isinstance(value, int) else list(value)


def _per_axis(value: Any, stages: int, dims: int) -> list[list[int]]:
    stagewise = [value] * stages if isinstance(value, int) else value
    return [[entry] * dims if isinstance(entry, int) else list(entry) for entry in stagewise]


def _same(field: str, value: Any, allowed: tuple[Any, ...], where: Path) -> None:
    numbers = [a for a in allowed if isinstance(a, (int, float)) and isinstance(value, (int, float))]
    if value in allowed or any(math.isclose(value, number, rel_tol=1e-3) for number in numbers):
        return
    listed = ", ".join(map(str, allowed))
    raise UserError(
        f"field {field} is {value!r}; autoseg knows {listed}",
        where=where,
        mend="predict with nnunetv2, or train anew with autoseg",
    )
