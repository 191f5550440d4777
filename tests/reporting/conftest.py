"""A workspace with everything a report can show: real hippocampus images, made-up runs."""

import json
import math
import shutil

import numpy as np
import pytest

from autoseg.evaluation import evaluate_case, summarize, write_summary
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans
from autoseg.raw import open_dataset, read_label, write_label
from autoseg.storage import read_json, write_json
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"
CASES = 12


def spec(dims):
    return NetworkSpec(
        dims=dims, in_channels=1, num_outputs=3, patch_size=(40, 56, 40)[3 - dims :],
        strides=((1,) * dims, (2,) * dims), kernel_sizes=((3,) * dims,) * 2, features=(32, 64), blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )  # fmt: skip


def plans():
    def configuration(name, dims, batch):
        return Configuration(
            name=name, dims=dims, spacing=(1.0,) * dims, median_shape=(36.0, 50.0, 35.0)[3 - dims :],
            patch_size=(40, 56, 40)[3 - dims :], batch_size=batch, batch_dice=dims == 2, normalization=("zscore",),
            use_mask=(False,), data_identifier=f"default_{name}", architecture="plain_unet", network=spec(dims),
        )  # fmt: skip

    return Plans(
        dataset_name=NAME, plans_name="default", planner="nnunet", transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2), original_median_spacing=(1, 1, 1), original_median_shape=(36, 50, 35),
        intensities=(intensities(),), channel_names=("MRI",),
        configurations={"2d": configuration("2d", 2, 281), "3d_fullres": configuration("3d_fullres", 3, 7)},
        resources={"device": "cuda", "memory_gib": 8},
        notes=("Images are nearly isotropic: no axis is treated separately.", "Whole images fit into one patch."),
    )  # fmt: skip


def intensities():
    return ChannelIntensities(
        mean=512.25, median=500, std=120.5, min=0, max=4000, percentile_00_5=120, percentile_99_5=900
    )


def spoiled(label, amount, random):
    """A reference with errors: moved by a voxel, with holes, with a false island."""
    result = np.roll(label, int(amount), axis=1 + int(amount) % 2).copy()
    result[random.random(label.shape) < 0.02 * amount] = 0
    if amount > 2:
        result[1:4, 1:4, 1:4] = 1
    return result


def write_run(folder, fold, cases, dataset, quality):
    random = np.random.default_rng(fold)
    scores = {}
    (folder / "validation").mkdir(parents=True)
    for index, case in enumerate(cases):
        raw, geometry = read_label(case.label)
        prediction = spoiled(raw, quality + (index % 3), random)
        write_label(folder / "validation" / f"{case.id}{dataset.file_ending}", prediction, geometry)
        scores[case.id] = evaluate_case(
            dataset.labels.to_internal(prediction), dataset.labels.to_internal(raw), labels=dataset.labels,
            spacing=geometry.spacing,
        )  # fmt: skip
    write_summary(summarize(scores), folder / "validation" / "summary.json")
    trainer, plans_name, configuration = folder.parent.name.split("__")
    record = {
        "format": 1, "dataset": NAME, "trainer": trainer, "plans_name": plans_name, "configuration": configuration,
        "fold": fold, "status": "finished", "steps": 2000, "steps_done": 2000, "seconds": 754.2 + fold,
        "device": "NVIDIA H200", "precision": "bf16", "parameters": 5603177, "architecture": "plain_unet", "seed": 1,
        "mirror_axes": [0, 1, 2], "versions": {"autoseg": "0.1.0", "torch": "2.13.0"},
    }  # fmt: skip
    write_json(folder / "run.json", record)
    (folder / "weights.safetensors").write_bytes(b"weights")
    plans().write(folder / "plans.json")
    lines = []
    for step in range(1, 2001, 5):
        p = step / 2000
        loss = 0.4 - 1.25 * (1 - math.exp(-5 * p)) + 0.04 * random.normal()
        rate = 0.01 * (1 - p) ** 0.9
        lines.append({"event": "step", "step": step, "progress": p, "loss": loss, "learning_rate": {"network": rate},
                      "seconds": 700 * p, "samples_per_second": 90 + fold, "waiting_for_data": 0.03})  # fmt: skip
        if step % 100 == 1:
            mean = 0.88 * (1 - math.exp(-6 * p)) + 0.01 * random.normal()
            lines.append({"event": "validation", "step": step, "progress": p, "case_dice": {}, "mean_dice": mean})
    lines.append({"event": "end"})
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "log.jsonl").write_text(text + '\n{"event": "step", "ste', encoding="utf-8")  # a torn last line


@pytest.fixture(scope="session")
def full_workspace(shared, tmp_path_factory):
    """Raw data, fingerprint, plans, five folds of two configurations (one unfinished run), and a test evaluation."""
    workspace = Workspace.open(tmp_path_factory.mktemp("workspace"))
    source, target = shared / "data" / NAME, workspace.raw / NAME
    names = sorted(path.name for path in (source / "labelsTr").iterdir())[:CASES]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for name in names:
        shutil.copy(source / "labelsTr" / name, target / "labelsTr" / name)
        image = name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(source / "imagesTr" / image, target / "imagesTr" / image)
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": CASES}
    (target / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(NAME, workspace)
    write_json(
        workspace.preprocessed_folder(NAME) / "fingerprint.json",
        {
            "format": 1, "dataset_name": NAME, "num_cases": CASES, "cases": [c.id for c in dataset.cases],
            "channel_names": ["MRI"], "spacings": [[1, 1, 1]] * CASES, "shapes_after_crop": [[35, 51, 35]] * CASES,
            "median_relative_size": 1.0, "intensities": [intensities().model_dump()], "num_labels": 3,
            "class_frequencies": [{"name": "background", "voxels": 600000, "cases": CASES},
                                  {"name": "Anterior", "voxels": 20500, "cases": CASES},
                                  {"name": "Posterior", "voxels": 18400, "cases": CASES}],
            "input_hash": "x",
        },
    )  # fmt: skip
    plans().write(workspace.plans_file(NAME, "default"))
    for configuration, quality in (("2d", 1), ("3d_fullres", 0)):
        for fold in range(3):
            folder = workspace.run_folder(NAME, "default", "default", configuration, fold)
            write_run(folder, fold, dataset.cases[fold * 4 : fold * 4 + 4], dataset, quality)
    unfinished = workspace.run_folder(NAME, "default", "default", "3d_fullres", 3)
    write_json(
        unfinished / "run.json",
        {"trainer": "default", "plans_name": "default", "configuration": "3d_fullres", "fold": 3, "status": "running",
         "steps": 2000, "steps_done": 310},
    )  # fmt: skip
    first = read_json(workspace.run_folder(NAME, "default", "default", "2d", 0) / "validation/summary.json")
    write_json(
        workspace.results / NAME / "test" / "summary.json", first | {"failed": {"case_9": "there is no prediction"}}
    )
    return workspace
