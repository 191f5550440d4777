"""Whether both sides came to the same: label maps, Dice, plans and preprocessed arrays. Run by autoseg's Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

# Share of the foreground voxels with the same label, by autoseg's number format: nnU-Net sums tiles in half precision.
LABELS = {"fp32": 0.998, "bf16": 0.99}
DICE = 0.005  # largest difference of the Dice of a label of a case, predictions against the references


def check_labels(job: dict[str, Any]) -> dict[str, Any]:
    """Compare two folders of label maps, and where there are references the Dice of both."""
    from autoseg.raw import read_label

    shares, dice, files = [], [0.0], sorted(Path(job["theirs"]).glob("*.nii.gz"))
    for file in files:
        ours, theirs = read_label(Path(job["ours"]) / file.name)[0], read_label(file)[0]
        foreground = (ours > 0) | (theirs > 0)
        shares.append(float((ours == theirs)[foreground].mean()) if foreground.any() else 1.0)
        reference = Path(job["references"]) / file.name if job.get("references") else None
        if reference is not None and reference.is_file():
            truth = read_label(reference)[0]
            dice += [abs(_dice(ours, truth, v) - _dice(theirs, truth, v)) for v in np.unique(truth) if v]
    labels = len(np.unique(theirs)) if files else 0
    found = {"files": len(files), "least_equal_foreground": min(shares, default=0.0), "dice_difference": max(dice),
             "labels_of_last": labels}  # fmt: skip
    return found | {"agree": bool(files) and min(shares) >= LABELS[job.get("precision", "fp32")] and max(dice) <= DICE}


def check_scores(job: dict[str, Any]) -> dict[str, Any]:
    """Compare the Dice of every label of every case."""
    ours = json.loads(Path(job["ours"]).read_text())["cases"]
    theirs = json.loads(Path(job["theirs"]).read_text())["metric_per_case"]
    names = {str(value): name for name, value in json.loads(Path(job["description"]).read_text())["labels"].items()}
    worst, count = 0.0, 0
    for case in theirs:
        mine = ours[Path(case["prediction_file"]).name.removesuffix(".nii.gz")]
        for value, scores in case["metrics"].items():
            a, b = mine[names[value]]["dice"], scores["Dice"]
            undefined = a is None or b is None or np.isnan(b)
            same_kind = (a is None) == (b is None or bool(np.isnan(b)))
            worst = max(worst, abs(a - b)) if not undefined else worst if same_kind else 1.0
            count += 1
    return {"scores": count, "dice_difference": worst, "agree": count > 0 and worst < 1e-9}


def check_preprocessed(job: dict[str, Any]) -> dict[str, Any]:
    """Compare plans, cases, and the arrays of the first case of each configuration."""
    import blosc2

    from autoseg.plans import Plans
    from autoseg.store import CaseStore
    from autoseg.workspace import Workspace

    folder, name = Path(job["theirs"]) / job["dataset"], job["dataset"]
    theirs = json.loads((folder / "nnUNetPlans.json").read_text())["configurations"]
    workspace = Workspace.open(Path(job["ours"]))
    plans = Plans.read(workspace.plans_file(name, "nnunet"))
    worst: dict[str, float] = {}
    same = True
    for key, fields in theirs.items():
        if "data_identifier" not in fields or key not in plans.configurations:
            same &= key in plans.configurations
            continue
        mine = plans.configuration(key)
        same &= list(mine.patch_size) == fields["patch_size"] and mine.batch_size == fields["batch_size"]
        same &= bool(np.allclose(mine.spacing, fields["spacing"]))
        store = CaseStore(workspace.store_folder(name, mine.data_identifier))
        files = sorted(path for path in (folder / fields["data_identifier"]).glob("*.b2nd") if "_seg" not in path.name)
        same &= {path.stem for path in files} <= set(store.cases)  # autoseg prepares unlabelled cases, too
        case = files[0].name.removesuffix(".b2nd")
        data = blosc2.open(urlpath=str(files[0]), mode="r")[:]
        ours = store.read(case).image((slice(None),) * 3)
        same &= ours.shape == data.shape
        worst[key] = float(np.abs(ours - data).max() / data.std()) if ours.shape == data.shape else float("inf")
    return {
        "same_plans_and_cases": same, "largest_difference_in_std": worst,
        "agree": same and max(worst.values(), default=1.0) < 0.01,
    }  # fmt: skip


def mean_dice(job: dict[str, Any]) -> dict[str, Any]:
    """Return the mean over cases of the mean Dice of the labels that the references have, and the Dice of each case."""
    from autoseg.raw import read_label

    cases = {}
    for file in sorted(Path(job["predicted"]).glob("*.nii.gz")):
        found, truth = read_label(file)[0], read_label(Path(job["references"]) / file.name)[0]
        cases[file.name] = float(np.mean([_dice(found, truth, value) for value in np.unique(truth) if value]))
    return {"dice": float(np.mean(list(cases.values()))), "cases": cases}


def _dice(found: np.ndarray, truth: np.ndarray, value: int) -> float:
    return float(2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum()))


JOBS = {"check_labels": check_labels, "check_scores": check_scores, "check_preprocessed": check_preprocessed,
        "mean_dice": mean_dice}  # fmt: skip
