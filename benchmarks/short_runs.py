"""Does the recipe of short runs hold on every data set: one fold of each real set in a minute or two.

    python benchmarks/short_runs.py [--only NAME ...] [--seconds 90] [--recipe NAME ...] [--workspace DIR] [--json FILE]

Plans once per set by the time budget, then trains fold 0 once per recipe: "planned" takes what the plan says, the
others put their settings over it, everything else equal. Sets of one to three cases train on all and are scored on
the same cases: that shows that something is learnt, not how well it generalises. For a quiet machine only: budgets
count real time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from chains import DATA, REGIONS, SCRIBBLES

SETS: dict[str, tuple[str, str, dict | None]] = {
    "hippocampus": ("Dataset004_Hippocampus", "3d_fullres", None),
    "cardiac_2d": ("Dataset112_CardiacACDC", "2d", None),
    "cardiac_3d": ("Dataset112_CardiacACDC", "3d_fullres", None),
    "scribbles_2d": ("Dataset112_CardiacACDC", "2d", SCRIBBLES),
    "scribbles_3d": ("Dataset112_CardiacACDC", "3d_fullres", SCRIBBLES),
    "nuclei": ("Dataset105_NucleiDSB2018", "2d", None),
    "polyp": ("Dataset101_PolypMultiCentre", "2d", None),
    "brain_regions": ("Dataset110_BrainTumourMR", "3d_fullres", REGIONS),
    "brain_labels": ("Dataset110_BrainTumourMR", "3d_fullres", None),
    "lungs": ("Dataset107_ChestXrayLungs", "2d", None),
    "membrane": ("Dataset104_EMMembrane", "2d", None),
    "vessels": ("Dataset103_RetinaVessel", "2d", None),
    "atrium": ("Dataset114_LeftAtrium", "3d_fullres", None),
    "ventricle": ("Dataset113_CineSunnybrook", "2d", None),
    "lesions": ("Dataset111_MSLesionMR", "3d_fullres", None),
    "axons": ("Dataset117_SEMAxonMyelin", "2d", None),
    "organs": ("Dataset108_TotalSegCT", "3d_fullres", None),
    "liver": ("Dataset109_LiverCT", "3d_fullres", None),
    "nrrd": ("Dataset119_TumourNRRD", "3d_fullres", None),
}
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 3e-5, "warmup_steps": 0}
RECIPES: dict[str, dict] = {
    "planned": {},
    "nnunet": {**SGD, "augmentation": "full", "mirror": True},
    "sgd": SGD,
    "slower": {"learning_rate": 3e-3},
    "slowest": {"learning_rate": 1e-3},
    "mirrored": {"mirror": True},
}
FEW_CASES = 3  # up to here, training is on all cases


def run_set(name: str, recipes: list[str], seconds: int, workspace: Path) -> list[dict]:
    """Plan one set and train it by every recipe; returns one row per recipe."""
    dataset, configuration, variant = SETS[name]
    source = DATA / dataset
    home = workspace / name
    home.mkdir(parents=True, exist_ok=True)
    reference = str(source)
    if variant is not None:
        own = json.loads((source / "dataset.json").read_text()) | variant | {"folder": str(source)}
        (home / f"{name}.json").write_text(json.dumps(own))
        reference = str(home / f"{name}.json")
    planning = run(home, "plan-and-preprocess", reference, "-c", configuration, "--time-budget", f"{5 * seconds}s")
    if planning["exit"]:
        return [{"set": name, **planning}]
    cases = len(list((source / "labelsTr").iterdir()))
    fold = "all" if cases <= FEW_CASES else "0"
    rows = []
    for recipe in recipes:
        overrides = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in RECIPES[recipe].items()]
        settings = [part for override in ["stop_on_collapse=false", *overrides] for part in ("--set", override)]
        done = run(home, "train", reference, configuration, fold, "--name", f"{recipe}_{seconds}",
                   "--time-budget", f"{seconds}s", *settings)  # fmt: skip
        rows.append({"set": name, "recipe": recipe, "cases": cases, **done})
        if not done["exit"]:
            rows[-1] |= result(home, f"{recipe}_{seconds}", configuration, reference, source, fold)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def run(home: Path, *arguments: str) -> dict:
    """Run one command; returns its exit code and seconds, and what it said where it failed."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "AUTOSEG_WORKSPACE": str(home)}
    command = [sys.executable, "-m", "autoseg.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = {"said": done.stderr[-2000:]} if done.returncode else {}
    return {"exit": done.returncode, "seconds": round(time.monotonic() - started, 1), **said}


def result(home: Path, name: str, configuration: str, reference: str, source: Path, fold: str) -> dict:
    """Return steps and Dice of a finished run: of its validation, or of its own training cases if it took them all."""
    folder = next(home.glob(f"results/*/{name}__auto__{configuration}/fold_{fold}"))
    plan = json.loads((folder / "run.json").read_text())["identity"]["plan"]
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    summary = folder / "validation" / "summary.json"
    if fold == "all":
        output = home / f"predictions_{name}"
        run(home, "find-best", reference, "--trainer", name)
        run(home, "predict", "-i", str(source / "imagesTr"), "-o", str(output), "-d", reference)
        labels = reference if reference.endswith(".json") else f"{reference}/dataset.json"
        run(home, "evaluate", str(output), str(source / "labelsTr"), "--dataset-json", labels)
        summary = output / "summary.json"
    found = json.loads(summary.read_text())
    return {
        "steps": last["step"],
        "training seconds": last["seconds"],
        "patch": plan["patch_size"],
        "batch": plan["batch_size"],
        "features": plan["network"]["features"],
        "dice": {label: round(values["dice"], 3) for label, values in found["mean"].items()},
        "mean": round(found["foreground_mean"]["dice"], 3),
    }


def main() -> None:
    """Run the sets and recipes asked for and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipe", nargs="*", choices=list(RECIPES), default=["planned"])
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--workspace", type=Path, default=Path("autoseg_short_runs"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        rows += run_set(name, options.recipe, options.seconds, options.workspace.resolve())
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
