"""The reference label maps of a data set, and the component tables of label maps on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoseg.deadlines import file_bytes
from autoseg.errors import CasesFailed
from autoseg.labels import Labels
from autoseg.raw import Dataset, read_label
from autoseg.selection.components import ComponentTable, component_table, value_sets
from autoseg.workers import run_cases


@dataclass(frozen=True)
class Reference:
    """Where the reference of a case is, and which names it shows (None: all)."""

    case: str
    path: Path
    annotated: tuple[str, ...] | None = None

    def read(self, labels: Labels) -> tuple[np.ndarray, tuple[float, ...]]:
        """Return the internal label map (Z, Y, X) and the spacing in mm."""
        raw, geometry = read_label(self.path)
        return labels.to_internal(raw, str(self.path)), tuple(geometry.spacing)


@dataclass(frozen=True)
class _Task:
    prediction: Path
    reference: Reference
    labels: Labels = field(repr=False)

    def __str__(self) -> str:
        return self.reference.case


def references_of(dataset: Dataset) -> dict[str, Reference]:
    """Return the reference of every labelled training case."""
    return {case.id: Reference(case.id, case.label, case.annotated) for case in dataset.cases if case.label}


def tables_from_files(
    predictions: Mapping[str, Path], references: Mapping[str, Reference], labels: Labels, workers: int | None = None
) -> dict[str, ComponentTable]:
    """Return the component table of every predicted label map, sorted by case; every file is read once."""
    tasks = [_Task(path, references[case], labels) for case, path in predictions.items()]
    results = list(
        run_cases(
            _table, tasks, stage="post-processing", workers=workers, progress="post-processing",
            size_of=lambda task: file_bytes((task.prediction, task.reference.path)),
        )
    )  # fmt: skip
    failures = [result.error for result in results if result.error is not None]
    if failures:
        raise CasesFailed(failures)
    return {result.case: result.value for result in sorted(results, key=lambda result: result.case)}


def _table(task: _Task) -> ComponentTable:
    prediction, _ = read_label(task.prediction)
    reference, _ = task.reference.read(task.labels)
    internal = task.labels.to_internal(prediction, str(task.prediction))
    return component_table(internal, reference, labels=task.labels, groups=value_sets(task.labels))
