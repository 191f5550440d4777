"""Gathers what a report is made of: whatever exists of a data set in the workspace; what does not is None or empty."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, Model, read_model
from autoseg.plans import Plans
from autoseg.raw import Dataset, open_dataset
from autoseg.selection.runs import CONFIGURATION_ORDER, RUN_FILE
from autoseg.storage import read_json
from autoseg.training.log import LOG_FILE, read_events
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class RunMaterial:
    """One fold, finished or not: run.json, the events of log.jsonl, the summary of its validation cases."""

    folder: Path
    fold: str
    record: dict[str, Any]
    events: list[dict[str, Any]]
    summary: dict[str, Any] | None

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind, in the order of time."""
        return [event for event in self.events if event.get("event") == kind]


@dataclass(frozen=True)
class ExperimentMaterial:
    """The folds of one trainer, plans and configuration."""

    name: str
    trainer: str
    plans_name: str
    configuration: str
    runs: list[RunMaterial]

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the pooled scores of the validated cases: numbered folds, or the fold "all" if alone."""
        numbered = [run for run in self.runs if run.fold != "all"] or self.runs
        pooled = {case: named for run in numbered if run.summary for case, named in run.summary["cases"].items()}
        return dict(sorted(pooled.items()))

    def label_map(self, case: str, file_ending: str) -> Path | None:
        """Return the predicted label map of a validation case, if it is there."""
        for run in self.runs:
            file = run.folder / "validation" / f"{case}{file_ending}"
            if run.summary and case in run.summary["cases"] and file.is_file():
                return file
        return None


@dataclass(frozen=True)
class Material:
    """Everything that a report may show."""

    name: str
    dataset: Dataset | None = None
    fingerprint: dict[str, Any] | None = None
    plans: list[Plans] = field(default_factory=list)
    experiments: list[ExperimentMaterial] = field(default_factory=list)
    model: Model | None = None
    evaluations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # on other cases, by title
    problems: list[str] = field(default_factory=list)  # artefacts that could not be read

    @property
    def best_experiment(self) -> ExperimentMaterial | None:
        """Return the first member of the selected model, else the experiment with most validated cases."""
        scored = [experiment for experiment in self.experiments if experiment.scores]
        if self.model is not None:
            chosen = self.model.selection.get("candidates", [])
            names = [m for c in chosen if c["name"] == self.model.selection.get("best") for m in c["members"]]
            scored = [e for e in scored if e.name in names[:1]] or scored
        return max(scored, key=lambda experiment: len(experiment.scores), default=None)


def gather(reference: str | Path, workspace: Workspace, evaluations: Sequence[Path] = ()) -> Material:
    """Return the material of a data set; parts that are missing or broken are left out, the latter told.

    Raises: UserError if nothing at all is known of the data set.
    """
    problems: list[str] = []
    dataset, name = _dataset(reference, workspace, problems)
    results, preprocessed = workspace.results / name, workspace.preprocessed_folder(name)
    fingerprint_file = preprocessed / "fingerprint.json"
    model_folder = workspace.model_folder(name)
    has_model = (model_folder / MODEL_FILE).is_file()
    others = sorted(results.glob(f"*/{SUMMARY_FILE}")) + [Path(path) for path in evaluations]
    return Material(
        name=name,
        dataset=dataset,
        fingerprint=_attempt(lambda: read_json(fingerprint_file), problems) if fingerprint_file.is_file() else None,
        plans=[p for f in sorted((preprocessed / "plans").glob("*.json")) if (p := _attempt(_plans_of(f), problems))],
        experiments=_experiments(results, problems),
        model=_attempt(lambda: read_model(model_folder, verify=False), problems) if has_model else None,
        evaluations=[(f.parent.name, s) for f in others if (s := _attempt(_summary_of(f), problems))],
        problems=problems,
    )


def _dataset(reference: str | Path, workspace: Workspace, problems: list[str]) -> tuple[Dataset | None, str]:
    try:
        dataset = open_dataset(reference, workspace)
    except UserError as error:
        name = _known_name(str(reference), workspace)
        if name is None:
            raise
        problems.append(f"The raw data could not be opened, so there are no pictures: {error}")
        return None, name
    return dataset, dataset.name


def _known_name(reference: str, workspace: Workspace) -> str | None:
    """Return the name of a data set of which only the artefacts are left."""
    folders = [f for root in (workspace.results, workspace.preprocessed) if root.is_dir() for f in root.iterdir()]
    for folder in sorted(f for f in folders if f.is_dir()):
        match = re.fullmatch(r"Dataset(\d+)_(.+)", folder.name)
        number = match and reference.isdigit() and int(match.group(1)) == int(reference)
        if number or reference == folder.name or (match and reference == match.group(2)):
            return folder.name
    return None


def _experiments(results: Path, problems: list[str]) -> list[ExperimentMaterial]:
    groups: dict[tuple[str, str, str], list[RunMaterial]] = {}
    for file in sorted(results.glob(f"*__*__*/fold_*/{RUN_FILE}"), key=_fold_order):
        record = _attempt(lambda file=file: read_json(file), problems)
        if not isinstance(record, dict):
            continue
        trainer, plans_name, configuration = file.parent.parent.name.rsplit("__", 2)
        fold = file.parent.name.removeprefix("fold_")
        summary_file = file.parent / "validation" / SUMMARY_FILE
        summary = _attempt(_summary_of(summary_file), problems) if summary_file.is_file() else None
        log_file = file.parent / LOG_FILE
        run = RunMaterial(file.parent, fold, record, read_events(log_file) if log_file.is_file() else [], summary)
        groups.setdefault((trainer, plans_name, configuration), []).append(run)
    experiments = [ExperimentMaterial("__".join(key), *key, runs) for key, runs in groups.items()]
    return sorted(experiments, key=_experiment_order)


def _experiment_order(experiment: ExperimentMaterial) -> tuple[Any, ...]:
    known = list(CONFIGURATION_ORDER)
    position = known.index(experiment.configuration) if experiment.configuration in known else len(known)
    return position, experiment.name


def _fold_order(file: Path) -> tuple[str, int, str]:
    fold = file.parent.name.removeprefix("fold_")
    return file.parent.parent.name, int(fold) if fold.isdigit() else 10**6, fold


def _plans_of(file: Path) -> Any:
    return lambda: Plans.read(file)


def _summary_of(file: Path) -> Any:
    def read() -> dict[str, Any]:
        summary = read_json(file)
        if not isinstance(summary, dict) or not isinstance(summary.get("cases"), dict):
            raise UserError("this is not a summary of scores", where=file)
        return summary

    return read


def _attempt(read: Any, problems: list[str]) -> Any:
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None
