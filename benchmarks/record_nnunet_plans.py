"""Record what nnunetv2's own planners answer to random fingerprints, for tests/planners/nnunet_plans.json.

Run it with a Python that has nnunetv2 2.8.1 (it does not import autoseg):

    python benchmarks/record_nnunet_plans.py --count 40 --output tests/planners/nnunet_plans.json
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import tempfile
from pathlib import Path

FIELDS = (
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "batch_dice",
    "data_identifier",
    "inherits_from",
    "previous_stage",
    "next_stage",
)
NETWORK_FIELDS = (
    "features_per_stage",
    "strides",
    "kernel_sizes",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_decoder",
)
FEWEST, MOST = 5, 2000  # cases
SPACING = (0.2, 8.0)  # mm
LARGEST = 800  # voxels along an axis
MEMORY = (2.0, 80.0)  # GiB


def random_case(draw: random.Random) -> dict:
    """Return one random data set: spacings 0.2-8 mm, shapes 1-800, 1-6 channels, 5-2000 cases, 2D and 3D, CT and MR."""
    flat = draw.random() < 0.2
    wanted = round(math.exp(draw.uniform(math.log(FEWEST), math.log(MOST))))  # few cases as often as many
    cases = min(wanted, draw.choice((5, 7, 9, 20)))  # different ones; they repeat, so that the file stays small
    repeats = min(math.ceil(wanted / cases), MOST // cases)
    spacing = [round(math.exp(draw.uniform(*map(math.log, SPACING))), 3) for _ in range(3)]
    if draw.random() < 0.5:
        spacing[2] = spacing[1]
    if draw.random() < 0.2:
        spacing = [1.0, 1.0, 1.0]
    shape = [round(math.exp(draw.uniform(math.log(8), math.log(LARGEST)))) for _ in range(3)]
    if draw.random() < 0.3:
        shape[draw.randrange(3)] = draw.randint(1, 40)
    if flat:
        shape[0], spacing = 1, draw.choice(([999.0, 1.0, 1.0], [999 * max(spacing[1:]), *spacing[1:]]))
    jitter = draw.choice((0.0, 0.2))
    spacings, shapes = [], []
    for _ in range(cases):
        scale = [1 + draw.uniform(-jitter, jitter) for _ in range(3)]
        spacings.append(
            [s if flat else _within(round(s * k, 4), *SPACING) for s, k in zip(spacing, scale, strict=True)]
        )
        shapes.append([1 if flat and a == 0 else _within(round(shape[a] * scale[-a]), 1, LARGEST) for a in range(3)])
    names = ["CT", "CT", "MRI", "MRI", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore", "PET", "ct"]
    labels = {f"label{index}" if index else "background": index for index in range(draw.randint(2, 20))}
    if draw.random() < 0.2:
        labels["ignore"] = len(labels)
    return {
        "planner": draw.choice(("nnunet", "nnunet", "residual_encoder_m", "residual_encoder_l", "residual_encoder_xl")),
        "memory": draw.choice((None, round(math.exp(draw.uniform(*map(math.log, MEMORY))), 1))),
        "channels": [draw.choice(names) for _ in range(draw.randint(1, 6))],
        "labels": labels,
        "repeats": repeats,
        "spacings": spacings,
        "shapes": shapes,
        "median_relative_size": round(draw.uniform(0.4, 1), 3),
    }


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def answer(case: dict, folder: Path) -> dict:
    """Return nnunetv2's plans for a case, reduced to what is planned."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as presets,
    )

    name = "Dataset001_Random"
    raw, preprocessed = folder / "raw" / name, folder / "preprocessed" / name
    shutil.rmtree(raw, ignore_errors=True)
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        path.mkdir(parents=True, exist_ok=True)
    for channel in range(len(case["channels"])):
        (raw / "imagesTr" / f"case_{channel:04d}.nii.gz").touch()
    description = {
        "channel_names": {str(i): channel for i, channel in enumerate(case["channels"])},
        "labels": case["labels"],
        "numTraining": len(case["spacings"]) * case["repeats"],
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    fingerprint = {
        "spacings": case["spacings"] * case["repeats"],
        "shapes_after_crop": case["shapes"] * case["repeats"],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": case["median_relative_size"],
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    kinds = {
        "nnunet": ExperimentPlanner,
        "residual_encoder_m": presets.nnUNetPlannerResEncM,
        "residual_encoder_l": presets.nnUNetPlannerResEncL,
        "residual_encoder_xl": presets.nnUNetPlannerResEncXL,
    }
    memory = {} if case["memory"] is None else {"gpu_memory_target_in_gb": case["memory"]}
    with contextlib.redirect_stdout(io.StringIO()):
        plans = kinds[case["planner"]](name, **memory).plan_experiment()
    (preprocessed / f"{plans['plans_name']}.json").unlink()
    configurations = {}
    for key, value in plans["configurations"].items():
        kept = {field: value[field] for field in FIELDS if field in value}
        arguments = value.get("architecture", {}).get("arch_kwargs", {})
        kept |= {field: arguments[field] for field in NETWORK_FIELDS if field in arguments}
        configurations[key] = kept
    keys = ("original_median_spacing_after_transp", "original_median_shape_after_transp", "transpose_forward")
    return {key: plans[key] for key in (*keys, "transpose_backward")} | {"configurations": configurations}


def main() -> None:
    """Record `--count` answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("raw", "preprocessed", "results"):  # read once, when nnunetv2 is imported
            os.environ[f"nnUNet_{part}"] = str(Path(folder) / part)
        cases = [random_case(draw) for _ in range(arguments.count)]
        recorded = [{"case": case, "plans": answer(case, Path(folder))} for case in cases]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in recorded)
    arguments.output.write_text(f"[\n{lines}\n]\n")
    print(f"{len(recorded)} answers of nnunetv2 written to {arguments.output}")


if __name__ == "__main__":
    main()
