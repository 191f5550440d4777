"""After the runs: tables, verdict and page, from the record alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from autoseg.benchmarking.gathering import gather
from autoseg.benchmarking.page import write_page
from autoseg.benchmarking.record import Record
from autoseg.benchmarking.statistics import case_table, nan_mean
from autoseg.benchmarking.tables import write_tables
from autoseg.benchmarking.verdict import Overall, Verdict, judge


def conclude(record: Record) -> tuple[list[Verdict], list[Overall]]:
    """Write tables, page and the verdict into the record; return the verdicts on the data sets and over all of them."""
    write_tables(record)
    gathered = {name: gather(record, name) for name in record["datasets"]}
    scores = {name: found for name, (found, _, _) in gathered.items() if found}
    verdicts, overall = judge(scores, notes={name: notes for name, (_, _, notes) in gathered.items()})
    classes: dict[str, dict[str, list[Any]]] = {}
    for verdict in verdicts:
        _, names, _ = gathered[verdict.dataset]
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
    write_page(record, verdicts, overall, classes)
    return verdicts, overall


def _plain(value: Any) -> Any:
    """Return nested values as JSON knows them: lists for tuples, null for what is undefined."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
