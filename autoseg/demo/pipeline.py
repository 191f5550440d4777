"""Every stage in a row, as the commands do it, on a bundled part of the Medical Segmentation Decathlon."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from autoseg.errors import CaseError, CasesFailed, UserError
from autoseg.storage import read_json
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

DATASET = "Dataset004_Hippocampus"
PLANS = "demo"
CONFIGURATION = "3d_fullres"
UNSEEN = "unseen"  # folder of the predictions on the cases that nothing was trained on
BEFORE_TRAINING = 15.0  # seconds that checking, planning and preprocessing take, as planning assumes it
AFTER_TRAINING = 0.1  # share of the budget kept back for selection, prediction, scores and report ...
AFTER_TRAINING_SECONDS = 12.0  # ... which take so long at least


@dataclass(frozen=True)
class Summary:
    """What the demo reached: Dice per structure, where everything is, and how long it took."""

    cross_validation: dict[str, float | None]  # Dice of every training case by the fold that had not seen it
    unseen: dict[str, float | None]  # Dice of the selected ensemble on cases that no fold has seen
    paths: dict[str, Path]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the summary for JSON."""
        return asdict(self)


def bundled_dataset() -> Path:
    """Return the folder of the bundled data set: 30 labelled training cases and 6 further labelled ones."""
    return Path(str(resources.files("autoseg.demo"))) / "data" / DATASET


def run(workspace: str | Path | None = None, time_budget: float = 600.0, *, device: str = "auto") -> Summary:
    """Run check, fingerprint, plan, preprocess, train, find-best, predict, evaluate and report within `time_budget`.

    `time_budget` (seconds) covers everything: training gets what the stages before it left, less a reserve for those
    after it. Called again in the same workspace, finished stages are not repeated.
    """
    start = time.monotonic()
    place = Workspace.open(workspace)
    folder = copy_dataset(place)
    _prepare(place, folder, time_budget, device)
    _train(place, folder, time_budget - (time.monotonic() - start), time_budget, device)
    summary = _finish(place, folder, device)
    return Summary(**summary, seconds=time.monotonic() - start)


def copy_dataset(place: Workspace) -> Path:
    """Copy the bundled data set into the workspace unless it is there; another one of its name is a UserError."""
    target = place.raw / DATASET
    if not target.exists():
        place.raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=place.raw) as temporary:
            copied = shutil.copytree(bundled_dataset(), Path(temporary) / DATASET)
            os.replace(copied, target)
    elif read_json(target / "dataset.json") != read_json(bundled_dataset() / "dataset.json"):
        raise UserError(
            "a data set of this name, but not that of the demo, is there already",
            where=target,
            mend="give the demo a workspace of its own: --workspace DIR",
        )
    return target


def _prepare(place: Workspace, folder: Path, time_budget: float, device: str) -> None:
    """Check, measure, plan and preprocess."""
    from autoseg.fingerprinting import fingerprint
    from autoseg.planning import plan
    from autoseg.plans import Plans
    from autoseg.preprocessing import preprocess
    from autoseg.raw import check, open_dataset
    from autoseg.training.log import RUN_FILE

    log.info("1/7 checking %s", folder)
    report = check(folder, place)
    if not report.ok:
        raise UserError(f"the bundled data set is damaged\n{report.table()}", where=folder, mend="install autoseg anew")
    dataset = open_dataset(folder, place)
    log.info("2/7 planning")
    measured = fingerprint(dataset, place)
    file = place.plans_file(dataset.name, PLANS)
    started = any(place.results.glob(f"{dataset.name}/*__{PLANS}__{CONFIGURATION}/fold_*/{RUN_FILE}"))
    if file.is_file() and started:
        log.info("    going on with the plans of the earlier call whose runs lie here; --workspace DIR begins anew")
        plans = Plans.read(file)
    else:
        plans = plan(
            dataset,
            measured,
            place,
            configurations=[CONFIGURATION],
            plans_name=PLANS,
            time_budget=max(time_budget - BEFORE_TRAINING - _reserve(time_budget), 0.1 * time_budget),
            device=device,
        )
    for note in plans.notes:
        log.info("    %s", note)
    log.info("3/7 preprocessing")
    preprocess(dataset, plans, place)


def _train(place: Workspace, folder: Path, time_left: float, time_budget: float, device: str) -> None:
    """Train every fold in the time that is left, less the reserve for what follows."""
    seconds = time_left - _reserve(time_budget)
    if seconds <= 0:
        raise UserError(
            f"the time budget of {time_budget:.0f} s was used up before training could start",
            mend="give more time: --time-budget 10m",
        )
    from autoseg.training import train

    log.info("4/7 training 5 folds for %.0f s", seconds)
    train(folder, CONFIGURATION, "cv", plans_name=PLANS, time_budget=seconds, device=device, workspace=place)


def _reserve(time_budget: float) -> float:
    """Return the seconds kept back for what follows training."""
    return max(AFTER_TRAINING_SECONDS, AFTER_TRAINING * time_budget)


def _finish(place: Workspace, folder: Path, device: str) -> dict[str, Any]:
    """Select, predict the unseen cases, score them, report."""
    from autoseg.evaluation import evaluate
    from autoseg.inference import Predictor
    from autoseg.model_folder import read_model
    from autoseg.reporting import report
    from autoseg.selection import find_best

    log.info("5/7 choosing the model")
    model = find_best(folder, place, plans_name=PLANS, device=device)
    predictions = place.results / DATASET / UNSEEN
    log.info("6/7 segmenting unseen cases")
    results = Predictor.load(model, device=device).predict_folder(folder / "imagesTs", predictions)
    failed = [result for result in results if result.error]
    if failed:
        raise CasesFailed([CaseError(result.case, "prediction", result.error) for result in failed])
    scores = evaluate(predictions, folder / "labelsTs", dataset_json=folder / "dataset.json")
    log.info("7/7 writing the report")
    paths = {
        "model": model,
        "segmentations": predictions,
        "scores": scores.output,
        "report": report(folder, place),
    }
    selection = read_model(model, verify=False).selection
    chosen = next(entry for entry in selection["candidates"] if entry["name"] == selection["best"])
    return {
        "cross_validation": dict(chosen["class_dice"]),
        "unseen": _dice(scores.mean),
        "paths": paths,
    }


def _dice(mean: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: scores["dice"] for name, scores in mean.items()}
