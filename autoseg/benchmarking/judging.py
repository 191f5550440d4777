"""After the runs: tables, verdict and page, from the record alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from autoseg.benchmarking.gathering import gather
from autoseg.benchmarking.page import write_page
from autoseg.benchmarking.record import Record
from autoseg.benchmarking.statistics import case_table, nan_mean
from autoseg.benchmarking.tables import finished_runs, training_seconds, voxels_per_step, write_tables
from autoseg.benchmarking.verdict import Overall, Verdict, judge

UNEVEN = 1.1  # times as much as another method's, from which on time and data are told to be unequal


def conclude(record: Record) -> tuple[list[Verdict], list[Overall]]:
    """Write tables, page and the verdict into the record; return the verdicts on the data sets and over all of them."""
    write_tables(record)
    gathered = {name: gather(record, name) for name in record["datasets"]}
    scores = {name: found.scores for name, found in gathered.items() if found.scores}
    notes = {
        name: (*found.notes, *uneven_time(record, name, found.scores), *uneven_data(record, name, found.scores))
        for name, found in gathered.items()
    }
    units = {name: found.units for name, found in gathered.items()}
    barred = {name: found.barred for name, found in gathered.items()}
    verdicts, overall = judge(scores, notes=notes, units=units, barred=barred)
    classes: dict[str, dict[str, list[Any]]] = {}
    for verdict in verdicts:
        names = gathered[verdict.dataset].names
        means = [nan_mean(case_table(scores[verdict.dataset][one.entry]), 0) for one in verdict.standings]
        classes[verdict.dataset] = {
            name: [None if np.isnan(mean[index]) else float(mean[index]) for mean in means]
            for index, name in enumerate(names)
        }
    record.content["verdict"] = _plain({
        "datasets": [
            {**asdict(verdict), "comparisons": [{**asdict(c), "decided": c.decided} for c in verdict.comparisons],
             "suitability": verdict.suitability, "classes": classes[verdict.dataset]}
            for verdict in verdicts
        ],
        "overall": [asdict(one) for one in overall],
    })  # fmt: skip
    record.write()
    waiting = {name: said for name, said in notes.items() if name not in scores}
    write_page(record, verdicts, overall, classes, waiting)
    return verdicts, overall


def uneven_time(record: Record, dataset: str, entries: Iterable[str]) -> list[str]:
    """Return a warning where runs at equal time took unequal time in the end: by fixed steps, or few long ones."""
    budget = record["question"]["budget"]
    if record["question"]["equal"] != "time":
        return []
    took: dict[str, float] = {}
    for entry in entries:
        costs = record["costs"].get(f"{dataset}/{entry}", {})
        runs = finished_runs(record, dataset, entry)
        seconds = [one for run in runs if (one := training_seconds(costs, run))]
        if seconds:
            took[entry] = statistics.mean(seconds)
    if (ends := _far_apart(took)) is None:
        return []
    least, most = ends
    names = {entry: record["entries"][entry]["name"] for entry in (least, most)}
    return [
        f"Equal time came out unequal: for a budget of {budget:g} s, training took {took[least]:.3g} s "
        f"({names[least]}) to {took[most]:.3g} s ({names[most]}). Either a run has too few steps to end near the "
        "budget, or steps were timed before (--deterministic) and cost more since: give more time, or compare at equal "
        "steps."
    ]


def uneven_data(record: Record, dataset: str, entries: Iterable[str]) -> list[str]:
    """Return a warning where networks at equal steps see unequal amounts of data, since each has a plan of its own."""
    if record["question"]["equal"] != "steps":
        return []
    seen = {entry: voxels for entry in entries if (voxels := voxels_per_step(record, dataset, entry))}
    if (ends := _far_apart(seen)) is None:
        return []
    least, most = ends
    names = {entry: record["entries"][entry]["name"] for entry in (least, most)}
    return [
        f"Equal steps are not equal data: a step sees {seen[least]:,} voxels ({names[least]}) to {seen[most]:,} voxels "
        f"({names[most]}), by the plan of each network. Give all the same patches and batches (--plans NAME), or "
        "compare at equal time."
    ]


def _far_apart(values: Mapping[str, float]) -> tuple[str, str] | None:
    """Return the entries of the least and the most where these are told to be unequal."""
    if not values:
        return None
    least, most = min(values, key=lambda entry: values[entry]), max(values, key=lambda entry: values[entry])
    return (least, most) if least != most and values[most] >= UNEVEN * values[least] else None


def _plain(value: Any) -> Any:
    """Return nested values as JSON knows them: lists for tuples, null for what is undefined."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
