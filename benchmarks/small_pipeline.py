"""The commands from `check` to `evaluate` on a few bundled cases, with networks of some thousand weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from autoseg.storage import read_json, write_json

NAME = "Dataset004_Hippocampus"
CASES, UNSEEN, STEPS = 6, 2, 6
QUICK = ["--set", "checkpoint_minutes=0", "--set", "observed_cases=1", "--set", "mirror=false"]
SMALL = {
    "planning": ["--planner", "small", "--gpu-memory", "0.02", "--device", "cpu"],
    "training": ["--plans", "small", "--deterministic", *QUICK],
}
PLANNER = f'''"""nnU-Net's plan with networks of some thousand weights."""

from autoseg import Planner, register
from autoseg.plans import TrainingPlan


@register.planner("small")
class Small(Planner):
    """To be killed."""

    base_features: int = 4
    max_features_2d: int = 8
    max_features_3d: int = 8

    def training(self, sized, frame):
        """Return the recipe: few steps."""
        return TrainingPlan(steps={STEPS}, optimizer="adamw", learning_rate=3e-3, augmentation="light")
'''


def commands(work: Path, workers: int, *, planning: Sequence[str], training: Sequence[str]) -> dict[str, list[str]]:
    """Return the command lines in the order in which they build on each other."""
    raw, segmented = work / "raw" / NAME, work / "segmented"
    place, helpers = ["--workspace", str(work)], ["--workers", str(workers)]
    train = [*training, *place, *helpers]
    return {
        "check": ["check", NAME, *place],
        "plan-and-preprocess": ["plan-and-preprocess", NAME, *planning, *place, *helpers],
        "train 3d_fullres": ["train", NAME, "3d_fullres", "0,1", *train],
        "train 2d": ["train", NAME, "2d", "0", *train],
        "find-best": ["find-best", NAME, *place, *helpers],
        "predict": ["predict", "-i", str(raw / "imagesTs"), "-o", str(segmented), "-d", NAME, "--uncertainty", *place],
        "evaluate": ["evaluate", str(segmented), str(raw / "labelsTs"), "--dataset-json", str(raw), *helpers],
    }  # fmt: skip


def copy_data(work: Path) -> None:
    """Make a workspace of a few of the bundled cases and the planner."""
    from autoseg.demo import bundled_dataset

    source, target = bundled_dataset(), work / "raw" / NAME
    for part, count in (("Tr", CASES), ("Ts", UNSEEN)):
        for label in sorted((source / f"labels{part}").iterdir())[:count]:
            image = label.name.replace(".nii.gz", "_0000.nii.gz")
            for name in (f"labels{part}/{label.name}", f"images{part}/{image}"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, target / name)
    description = read_json(source / "dataset.json")
    write_json(target / "dataset.json", {**description, "numTraining": CASES})
    (work / "planners").mkdir()
    (work / "planners" / "small.py").write_text(PLANNER)
