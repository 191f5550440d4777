"""Scores a folder of label maps against a folder of references: JSON and CSV, one row per case and label."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg.deadlines import file_bytes
from autoseg.errors import CaseError, CasesFailed, UserError
from autoseg.evaluation.case import Scores, evaluate_case
from autoseg.evaluation.summary import summarize, write_summary
from autoseg.labels import Labels, labels_from_description
from autoseg.raw import compare, read_label
from autoseg.raw.images import ENDINGS
from autoseg.raw.problems import is_there, short
from autoseg.regular_files import irregular
from autoseg.storage import read_json
from autoseg.workers import run_cases

log = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: the summary (see `summarize`), where it was written, and the cases without scores."""

    summary: dict[str, Any]
    output: Path
    failures: tuple[CaseError, ...] = ()

    @property
    def cases(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the scores by case, name, metric."""
        return self.summary["cases"]

    @property
    def mean(self) -> dict[str, dict[str, Any]]:
        """Return the means by name, metric."""
        return self.summary["mean"]

    @property
    def foreground_mean(self) -> dict[str, float | None]:
        """Return the means over names, by metric."""
        return self.summary["foreground_mean"]


class EvaluationFailed(CasesFailed):
    """Some cases have no scores; `evaluation` holds those of the others."""

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation
        super().__init__(evaluation.failures)


@dataclass(frozen=True)
class _Pair:
    case: str
    prediction: Path | None
    reference: Path
    labels: Labels = field(repr=False)
    tolerance_mm: float
    surface: bool
    folder: Path  # of the predictions, for the message
    annotated: tuple[str, ...] | None = None  # the names that the reference shows; None: all

    def __str__(self) -> str:
        return self.case


def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    dataset_json: Path | str | None = None,
    output: Path | str | None = None,
    tolerance: float = 1.0,
    surface: bool = True,
    workers: int | None = None,
) -> Evaluation:
    """Score every label map of `references` against the file of the same case name in `predictions`.

    Labels come from `dataset_json`, else from a dataset.json in either folder or beside `references`; so does the field
    `annotated`, names by case: what a reference does not show is not scored. Without `surface` HD95 and NSD, which
    take most of the time, are left undefined. Writes `output` (a .json file or a folder; default: the predictions
    folder) and a CSV beside it.

    Raises: UserError if nothing can be scored; EvaluationFailed (a CasesFailed), after writing the scores of the
    others, if a prediction is missing, unreadable, on another grid, or holds an undeclared value.
    """
    predictions, references = Path(predictions), Path(references)
    for folder in (predictions, references):
        if not folder.is_dir():
            raise UserError("the folder does not exist", where=folder)
    if not tolerance >= 0:
        raise UserError(f"the tolerance must be 0 mm or more, got {tolerance}")
    description_file = _find_description(dataset_json, predictions, references)
    description = read_json(description_file)
    if not isinstance(description, dict):
        mend = 'write {"labels": {"background": 0, "tumour": 1}}'
        raise UserError("the file must hold one JSON object", where=description_file, mend=mend)
    labels = labels_from_description(_modern(description), where=str(description_file))
    target = _target(Path(output) if output is not None else predictions, description_file)
    pairs = _pairs(predictions, references, _ending(description, description_file), labels, tolerance, surface)
    shown = _annotated(description, labels, str(description_file))
    pairs = [replace(pair, annotated=shown.get(pair.case)) for pair in pairs]
    scores: dict[str, dict[str, Scores]] = {}
    failures: list[CaseError] = []
    results = run_cases(
        _score, pairs, stage="evaluation", workers=workers, progress="evaluating",
        size_of=lambda pair: file_bytes((pair.prediction, pair.reference)),
    )  # fmt: skip
    for result in results:
        if result.error is not None:
            failures.append(result.error)
        else:
            scores[result.case] = result.value
    failures.sort(key=lambda failure: failure.case)
    summary = summarize(scores, tolerance_mm=tolerance)
    summary["failed"] = {failure.case: failure.reason for failure in failures}
    write_summary(summary, target)
    evaluation = Evaluation(summary, target, tuple(failures))
    if failures:
        raise EvaluationFailed(evaluation)
    return evaluation


def _ending(description: dict[str, Any], file: Path) -> str:
    """Return the ending of the label maps; a description that does not say means .nii.gz."""
    ending = description.get("file_ending")
    if ending is None:
        return ".nii.gz"
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        what = f"field file_ending must be a supported ending, got {short(repr(ending))}"
        raise UserError(what, where=file, mend=f"write one of {', '.join(ENDINGS)}")
    return ending


def _score(pair: _Pair) -> dict[str, Scores]:
    if pair.prediction is None:
        raise UserError("there is no prediction for this case", where=pair.folder, mend="predict this case as well")
    for path in (pair.prediction, pair.reference):
        if path.is_dir():
            raise UserError("this is a folder with the name of a label map", where=path, mend="rename or remove it")
    prediction, grid = read_label(pair.prediction)
    reference, reference_grid = read_label(pair.reference)
    if compare(reference_grid, grid).verdict != "equal":
        raise UserError(
            f"the prediction lies on another grid than its reference: {grid.describe()}, the reference "
            f"{reference_grid.describe()}",
            where=pair.prediction,
            mend="write the prediction on the grid of the image it was made from",
        )
    return evaluate_case(
        pair.labels.to_internal(prediction, str(pair.prediction)),
        pair.labels.to_internal(reference, str(pair.reference)),
        labels=pair.labels,
        spacing=reference_grid.spacing,
        tolerance_mm=pair.tolerance_mm,
        surface=pair.surface,
        annotated=pair.annotated,
    )


def _pairs(
    predictions: Path, references: Path, ending: str, labels: Labels, tolerance: float, surface: bool
) -> list[_Pair]:
    found = _label_files(references, ending)
    if not found:
        raise UserError(f"no label map ending in {ending!r} is here", where=references)
    offered = _label_files(predictions, ending)
    extra = sorted(set(offered) - set(found))
    if extra:
        log.warning("%d prediction(s) without a reference are not scored: %s", len(extra), ", ".join(extra[:5]))
    return [
        _Pair(case, offered.get(case), path, labels, tolerance, surface, predictions) for case, path in found.items()
    ]


def _annotated(description: dict[str, Any], labels: Labels, where: str) -> dict[str, tuple[str, ...]]:
    """Return, for the cases that the description's field `annotated` lists, the names their references show."""
    field = description.get("annotated") or {}
    if not isinstance(field, dict):
        raise UserError("annotated must be a mapping of case -> list of label names", where=where)
    for case, names in field.items():
        unknown = [name for name in names if name not in labels.names] if isinstance(names, list) else [names]
        if unknown:
            raise UserError(
                f"annotated of case {short(case)} names {short(repr(unknown[0]))}, which is no label",
                where=where,
                mend=f"write a list of {short(', '.join(labels.names))}",
            )
    return {case: tuple(names) for case, names in field.items()}


def _label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Return case name -> file, or what only has the name of one, sorted."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    return {path.name[: -len(ending)]: path for path in files if not path.name.startswith(".")}


def _find_description(given: Path | str | None, predictions: Path, references: Path) -> Path:
    if given is not None:
        path = Path(given)
        return path / "dataset.json" if path.is_dir() else path
    places: Sequence[Path] = (predictions, references, references.parent)
    for place in places:
        if (place / "dataset.json").is_file() or irregular(place / "dataset.json"):
            return place / "dataset.json"
    raise UserError(
        "the names of the labels are not known: no dataset.json in the two folders or beside the references",
        where=references,
        mend="give it with --dataset-json",
    )


def _modern(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description with labels as name -> value; Medical Segmentation Decathlon files have them reversed."""
    fields = description.get("labels")
    if isinstance(fields, dict) and fields and all(str(k).isdigit() and isinstance(v, str) for k, v in fields.items()):
        return {**description, "labels": {name: int(value) for value, name in fields.items()}}
    return description


def _target(output: Path, description: Path) -> Path:
    """Return the file of the scores; UserError, before any work, if it or the table beside it cannot have its name."""
    target = output if output.suffix == ".json" else output / SUMMARY_FILE
    for file in (target, target.with_suffix(".csv")):
        if file.is_dir():
            mend = "rename the folder, or give another place with --output"
            raise UserError("this is a folder with the name of the file of the scores", where=file, mend=mend)
    if is_there(target) and target.samefile(description):
        raise UserError("the scores would replace this description", where=target, mend="give another --output")
    above = next(place for place in target.parents if os.path.lexists(place))
    if not above.is_dir():
        mend = "give a folder, or a file that ends with .json, with --output"
        raise UserError("this is no folder, so no scores can be written into it", where=above, mend=mend)
    return target
