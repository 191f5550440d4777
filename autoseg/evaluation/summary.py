"""From the scores of all cases to means, bootstrap intervals, a JSON file and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.evaluation.case import METRICS, Scores
from autoseg.randomness import generator
from autoseg.storage import write_json, write_text

AVERAGED = ("dice", "iou", "hd95", "nsd", "volume_prediction_ml", "volume_reference_ml")
AGREEMENT = ("dice", "iou", "hd95", "nsd")
RESAMPLES = 1000

Cases = Mapping[str, Mapping[str, Scores | Mapping[str, Any]]]


def summarize(cases: Cases, *, tolerance_mm: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Return the summary of the scores of all cases, as plain JSON values.

    `mean`: per name, over the cases where the metric is defined, with the number of cases that have a Dice and the
    number with `hd95` missing because one of the masks is empty. `foreground_mean`: over names of their means.
    `bootstrap`: 95 % percentile intervals of the foreground mean, cases resampled 1000 times, None below two cases.
    """
    plain = {case: {name: _plain(scores) for name, scores in named.items()} for case, named in sorted(cases.items())}
    names = list(dict.fromkeys(name for named in plain.values() for name in named))
    tables = {metric: _table(plain, names, metric) for metric in AVERAGED}
    means = {metric: column_means(table) for metric, table in tables.items()}
    mean: dict[str, dict[str, float | int | None]] = {}
    for position, name in enumerate(names):
        mean[name] = {metric: _number(means[metric][position]) for metric in AVERAGED}
        scored = ~np.isnan(tables["dice"][:, position])
        mean[name]["cases"] = int(scored.sum())
        mean[name]["hd95_missing"] = int(
            (scored & (tables["nsd"][:, position] == 0) & np.isnan(tables["hd95"][:, position])).sum()
        )
    return {
        "format": 1,
        "cases": plain,
        "mean": mean,
        "foreground_mean": {metric: _number(mean_of_defined(means[metric])) for metric in AGREEMENT},
        "bootstrap": {metric: bootstrap_interval(tables[metric], seed=seed) for metric in AGREEMENT},
        "tolerance_mm": tolerance_mm,
    }


def bootstrap_interval(table: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> list[float] | None:
    """Return the 95 % interval of the foreground mean of a table (cases, names) with NaN where undefined."""
    table = table[~np.isnan(table).all(axis=1)] if table.size else table
    if len(table) < 2:
        return None
    drawn = generator(seed, "bootstrap").integers(len(table), size=(resamples, len(table)))
    weights = np.zeros((resamples, len(table)))
    np.add.at(weights, (np.arange(resamples)[:, None], drawn), 1)
    defined = ~np.isnan(table)
    sums, counts = weights @ np.where(defined, table, 0), weights @ defined
    class_means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    named = ~np.isnan(class_means)
    means = np.where(named, class_means, 0).sum(axis=1) / named.sum(axis=1)
    return [float(value) for value in np.percentile(means, [2.5, 97.5])]


def column_means(table: np.ndarray) -> np.ndarray:
    """Return the mean of every column (cases, names) -> (names,) over its defined entries, NaN if there is none."""
    return np.array([mean_of_defined(column) for column in table.T])


def mean_of_defined(values: np.ndarray) -> float:
    """Return the mean of the entries that are not NaN, NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def score_table(cases: Cases, names: list[str], metric: str = "dice") -> np.ndarray:
    """Return a metric as a table (cases, names), NaN where undefined."""
    plain = {case: {name: _plain(scores) for name, scores in named.items()} for case, named in cases.items()}
    return _table(plain, names, metric)


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write the summary as JSON at `path` and, beside it, a CSV with one row per case and name."""
    write_json(path, summary, sealed=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "label", *METRICS])
    for case, named in summary["cases"].items():
        for name, scores in named.items():
            writer.writerow([case, name, *("" if scores.get(m) is None else scores[m] for m in METRICS)])
    write_text(path.with_suffix(".csv"), text.getvalue())


def _plain(scores: Scores | Mapping[str, Any]) -> dict[str, Any]:
    return scores.as_dict() if isinstance(scores, Scores) else dict(scores)


def _table(cases: Mapping[str, Mapping[str, Any]], names: list[str], metric: str) -> np.ndarray:
    rows = [[named.get(name, {}).get(metric) for name in names] for named in cases.values()]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
