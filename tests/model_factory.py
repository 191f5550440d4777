"""Model folders with randomly initialised tiny networks, as selection would write them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autoseg.labels import labels_from_description
from autoseg.model_folder import MODEL_FILE, Member, Model, PostprocessingStep, checksums
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans
from autoseg.plugins import build_network
from autoseg.storage import read_json, write_json

LABELS = {"background": 0, "near": 3, "far": 7}


def make_plans(name: str, *, channels: int, outputs: int, transpose=(0, 1, 2), **fields: Any) -> Plans:
    """Plans of one configuration `name`; `fields` replaces what the configuration has by default."""
    spacing = fields.pop("spacing", (1.0, 1.0, 1.0))
    patch = fields.pop("patch_size", (8, 16, 16)[-len(spacing) :])
    network = NetworkSpec(
        dims=len(spacing),
        in_channels=fields.pop("in_channels", channels),
        num_outputs=outputs,
        patch_size=patch,
        strides=((1,) * len(patch), (2,) * len(patch)),
        kernel_sizes=((3,) * len(patch),) * 2,
        features=(4, 6),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    scheme = fields.pop("normalization", "zscore")
    configuration = Configuration(
        name=name, dims=len(spacing), spacing=spacing, median_shape=tuple(map(float, patch)), patch_size=patch,
        batch_size=2, batch_dice=False, normalization=(scheme,) * channels, use_mask=(False,) * channels,
        data_identifier=f"test_{name}", architecture="plain_unet", network=network, **fields,
    )  # fmt: skip
    channel = ChannelIntensities(mean=0, median=0, std=1, min=-1, max=1, percentile_00_5=-1, percentile_99_5=1)
    return Plans(
        dataset_name="Dataset001_Test", plans_name="test", planner="test", transpose_forward=transpose,
        transpose_backward=tuple(transpose.index(axis) for axis in range(3)),
        original_median_spacing=(1, 1, 1), original_median_shape=(8, 16, 16), intensities=(channel,) * channels,
        channel_names=tuple(f"channel{index}" for index in range(channels)), configurations={name: configuration},
    )  # fmt: skip


def write_model(
    folder: Path,
    *members: dict[str, Any],
    labels: dict[str, Any] | None = None,
    channels: int = 1,
    file_ending: str = ".nii.gz",
    postprocessing: tuple[PostprocessingStep, ...] = (),
) -> Path:
    """Write a model folder; each member is {"name", "folds", Member fields..., "plans": fields of make_plans}."""
    parsed = labels_from_description({"labels": labels or LABELS})
    described = []
    for number, given in enumerate(members or ({},)):
        fields = {"name": f"member{number}", "folds": ("0",), "mirror_axes": (0, 1), "trainer": "supervised"} | given
        name, folds = fields["name"], fields.pop("folds")
        plans = make_plans(name, channels=channels, outputs=parsed.num_outputs, **fields.pop("plans", {}))
        plans.write(folder / "members" / name / "plans.json")
        files = {}
        for fold in folds:
            torch.manual_seed(100 * number + len(files))
            files[fold] = f"members/{name}/fold_{fold}.safetensors"
            network = build_network(fields.get("architecture", "plain_unet"), plans.configuration(name).network)
            save_file(network.state_dict(), folder / files[fold])
        described.append(
            Member(
                plans_file=f"members/{name}/plans.json", configuration=name, folds=files,
                **({"architecture": "plain_unet"} | fields),
            )
        )  # fmt: skip
    model = Model(
        dataset_name="Dataset001_Test", channel_names=tuple(f"channel{index}" for index in range(channels)),
        labels=parsed, file_ending=file_ending, members=tuple(described), postprocessing=postprocessing,
        checksums=checksums(folder),
    )  # fmt: skip
    write_json(folder / MODEL_FILE, model.model_dump(mode="json"), sealed=True)
    return folder


def edit_model(folder: Path, **changes: Any) -> None:
    """Change fields of the first member of model.json, and make the checksums anew."""
    content = read_json(folder / MODEL_FILE)
    content["members"][0] |= changes
    content["checksums"] = checksums(folder)
    write_json(folder / MODEL_FILE, content)
