"""From the record of a campaign to scores that can be compared: the same cases for all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from autoseg.benchmarking.record import Record
from autoseg.benchmarking.statistics import Scores
from autoseg.benchmarking.tables import scores_of

Named = dict[str, dict[str, Any]]  # name -> metric -> value
Runs = dict[str, dict[str, dict[int, dict[str, Named]]]]  # entry -> fold -> seed -> case -> scores


def gather(record: Record, dataset: str) -> tuple[dict[str, Scores], tuple[str, ...], tuple[str, ...]]:
    """Return {entry: scores}, the names of classes, and notes on what is left out, for one data set."""
    runs: Runs = {}
    for run in record["runs"].values():
        if run.get("status") == "finished" and run["dataset"] == dataset:
            found = scores_of(record, run)
            runs.setdefault(run["entry"], {}).setdefault(run["fold"], {})[run["seed"]] = found
    notes: list[str] = []
    folds = _common_folds(record, runs, notes)
    names = list(
        dict.fromkeys(
            name
            for of_folds in runs.values()
            for of_seeds in of_folds.values()
            for cases in of_seeds.values()
            for named in cases.values()
            for name in named
        )
    )
    cases = {fold: _common_cases(runs, fold, notes) for fold in folds}
    scores: dict[str, Scores] = {}
    for entry, of_folds in runs.items():
        scores[entry] = {fold: _array(of_folds[fold], cases[fold], names) for fold in folds if cases[fold]}
    counts = {entry: sum(len(of_folds[fold]) for fold in folds) for entry, of_folds in runs.items()}
    if len(set(counts.values())) > 1:
        notes.append(
            "Not all methods have the same number of runs: the mean over more of them is less noisy, not higher, and "
            "the interval of a method with a single run does not contain the noise between runs."
        )
    return ({entry: found for entry, found in scores.items() if found}, tuple(names), tuple(notes))


def _common_folds(record: Record, runs: Runs, notes: list[str]) -> list[str]:
    """Return the folds that all entries have; entries without any of the most common fold are taken out."""
    counts = Counter(fold for of_folds in runs.values() for fold in of_folds)
    if not counts:
        return []
    usual = max(counts, key=lambda fold: (counts[fold], fold))
    for entry in [entry for entry, of_folds in runs.items() if usual not in of_folds]:
        notes.append(f"{record['entries'][entry]['name']} has no finished run of fold {usual} and is not compared.")
        del runs[entry]
    folds = sorted(fold for fold in counts if all(fold in of_folds for of_folds in runs.values()))
    left = sorted(set(counts) - set(folds))
    if left:
        notes.append(f"Compared on fold {', '.join(folds)}; fold {', '.join(left)} is not finished for all methods.")
    return folds


def _common_cases(runs: Runs, fold: str, notes: list[str]) -> list[str]:
    found = [set(cases) for of_folds in runs.values() for cases in of_folds[fold].values()]
    common = sorted(set.intersection(*found))
    left = sorted(set.union(*found) - set(common))
    if left:
        notes.append(f"Left out of fold {fold}, since not every run scored them: {', '.join(left)}.")
    return common


def _array(of_seeds: dict[int, dict[str, Named]], cases: list[str], names: list[str]) -> np.ndarray:
    """Return the Dice (seeds, cases, names), NaN where undefined."""
    return np.array(
        [[[of_seeds[seed][case].get(name, {}).get("dice") for name in names] for case in cases]
         for seed in sorted(of_seeds)], dtype=float,
    )  # fmt: skip
