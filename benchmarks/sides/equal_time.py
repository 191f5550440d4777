"""Dice after equal wall time: fold 0 of hippocampus trained by both sides for as many minutes, several seeds.

autoseg: `train --time-budget`, by plans that were made for this time, or by nnU-Net's ("same_plan"); start, training
and validation are within the minutes. nnunetv2: its trainer and default plans; start and training are within the
minutes, its validation comes on top. Its poly schedule ends with the minutes and it has no online validation, so that
no time of it is lost: by its 1000 epochs of 250 steps it would be at the beginning of its schedule.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides.measuring import CommandFailed
from sides.place import Job, Place

DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
FOLDS = 5  # a plan is made for a whole cross-validation
ARMS = {"auto": "autoseg", "same_plan": "autoseg, nnU-Net's plan", "nnunet": "nnunetv2"}


def run(place: Place, data: Sequence[str] | None, seeds: Sequence[int], minutes: float) -> dict[str, Any]:
    """Train every arm with every seed, score the validation cases; prints rows, returns the figures."""
    at = place.at("equal_time")
    arms = [arm for arm in ARMS if arm in (data or ())] or ["auto", "nnunet"]  # other names are of other stages
    raw = at.raw(DATASET, cases=20 if place.quick else None)
    _prepare(at, raw, arms, minutes)
    rows: list[dict[str, Any]] = []
    print(
        f"{'arm':26}{'seed':>5}{'wall s':>9}{'steps':>8}{'Dice':>8}  Dice of {DATASET}, fold 0, after {minutes:g} min"
    )
    for seed in seeds:
        for arm in arms:
            row = _train(at, raw, arm, seed, minutes)
            if row is not None:
                rows.append(row)
                print(f"{ARMS[arm]:26}{seed:5}{row['seconds']:9.0f}{row['steps']:8}{row['dice']:8.4f}", flush=True)
    return {"minutes": minutes, "rows": rows, "means": _means(rows, arms)}


def _means(rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """Print and return the mean of each arm, and in how many seeds each of autoseg's is above nnU-Net's."""
    dice = {arm: {row["seed"]: row["dice"] for row in rows if row["arm"] == arm} for arm in arms}
    means = {arm: round(statistics.fmean(found.values()), 4) for arm, found in dice.items() if found}
    print("mean: " + ", ".join(f"{ARMS[arm]} {mean:.4f}" for arm, mean in means.items()))
    peer = dice.get("nnunet", {})
    for arm in (arm for arm in means if arm != "nnunet"):
        shared = dice[arm].keys() & peer.keys()
        above = sum(dice[arm][seed] > peer[seed] for seed in shared)
        print(f"{ARMS[arm]}: above nnunetv2 in {above} of {len(shared)} seed(s)")
    cases = {frozenset(row["cases"]) for row in rows}
    if len(cases) > 1:
        print("DO NOT AGREE: the arms were scored on different cases")
    return means


def _prepare(at: Place, raw: Path, arms: Sequence[str], minutes: float) -> None:
    """Plan and preprocess, outside the minutes."""
    plans = {
        "auto": ("--time-budget", f"{FOLDS * minutes:g}m"),
        "same_plan": ("--planner", "nnunet", "--gpu-memory", 8),
    }
    for arm in plans.keys() & arms:
        at.command(
            "autoseg", "autoseg", "plan-and-preprocess", raw, "-c", CONFIGURATION, "--plans-name", arm, *plans[arm],
            "--device", "cpu", "--workspace", at.work / "ours", threads=at.threads,
        ).run()  # fmt: skip
    done = at.work / "preprocessed" / DATASET / f"nnUNetPlans_{CONFIGURATION}"
    if "nnunet" in arms and not done.exists():
        at.command(
            "nnunet", "nnUNetv2_plan_and_preprocess", "-d", int(DATASET[7:10]), "-c", CONFIGURATION, "-npfp",
            at.threads, "-np", at.threads, "--no_pbar", threads=1,
        ).run()  # fmt: skip


def _train(at: Place, raw: Path, arm: str, seed: int, minutes: float) -> dict[str, Any] | None:
    """Train and validate one arm; returns its row, None where it failed."""
    predicted = at.work / f"predicted_{arm}_{seed}"
    shutil.rmtree(predicted, ignore_errors=True)
    job = _theirs(at, seed, minutes, predicted) if arm == "nnunet" else _ours(at, raw, arm, seed, minutes)
    try:
        usage, answer = job.run()
        if arm != "nnunet":
            answer = at.side("autoseg", "trained", workspace=at.work / "ours", run=f"{arm}.{seed}__*",
                             predicted=predicted).run()[1]  # fmt: skip
        scores = at.check("mean_dice", predicted=predicted, references=raw / "labelsTr")
    except CommandFailed as error:
        print(f"{ARMS[arm]:26}{seed:5} failed: {error}")
        return None
    seconds = answer.get("seconds", usage.seconds)
    return {"arm": arm, "seed": seed, "seconds": seconds, "steps": answer["steps"], **scores}


def _ours(at: Place, raw: Path, arm: str, seed: int, minutes: float) -> Job:
    return at.command(
        "autoseg", "autoseg", "train", raw, CONFIGURATION, 0, "--plans", arm, "--time-budget", f"{minutes:g}m",
        "--seed", seed, "--name", f"{arm}.{seed}", "--device", "cpu", "--workspace", at.work / "ours", "--restart",
        threads=at.threads,
    )  # fmt: skip


def _theirs(at: Place, seed: int, minutes: float, predicted: Path) -> Job:
    return at.side(
        "nnunet", "train", name=f"theirs_train_{seed}", dataset=DATASET, configuration=CONFIGURATION, fold=0, seed=seed,
        minutes=minutes, predicted=predicted,
    )  # fmt: skip
