"""From the record of a campaign to scores that can be compared: the same cases for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.benchmarking.record import Record
from autoseg.benchmarking.statistics import Scores
from autoseg.benchmarking.tables import MOST_NAMED, listed, scores_of, unscored_in_words

Named = dict[str, dict[str, Any]]  # name -> metric -> value
Runs = dict[str, dict[str, dict[int, dict[str, Named]]]]  # entry -> fold -> seed -> case -> scores


@dataclass(frozen=True)
class Gathered:
    """What one data set's finished runs have in common."""

    scores: dict[str, Scores]  # entry -> scores; none where there is nothing to compare
    names: tuple[str, ...]  # of classes
    units: tuple[str, ...]  # of every case, fold after fold: its group, else itself
    notes: tuple[str, ...]  # what is left out, and what is uneven
    barred: dict[str, str]  # entry -> why it cannot win: it did not do all that others did


def gather(record: Record, dataset: str) -> Gathered:
    """Return the scores of one data set that can be compared."""
    runs: Runs = {}
    for run in record["runs"].values():
        if run.get("status") == "finished" and run["dataset"] == dataset:
            found = scores_of(record, run)
            runs.setdefault(run["entry"], {}).setdefault(run["fold"], {})[run["seed"]] = found
    barred = _hindered(record, dataset, runs)
    notes = [f"{record['entries'][entry]['name']}: {reason}" for entry, reason in barred.items()]
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
    cases = {fold: _common_cases(record, runs, fold, notes) for fold in folds}
    scores: dict[str, Scores] = {}
    for entry, of_folds in runs.items():
        scores[entry] = {fold: _array(of_folds[fold], cases[fold], names) for fold in folds if cases[fold]}
    counts = {entry: sum(len(of_folds[fold]) for fold in folds) for entry, of_folds in runs.items()}
    if len(set(counts.values())) > 1:
        notes.append(
            "Not all methods have the same number of runs: the mean over more of them is less noisy, not higher, and "
            "the interval of a method with a single run does not contain the noise between runs."
        )
    groups = record["datasets"].get(dataset, {}).get("groups", {})
    units = tuple(_unit(case, groups) for fold in sorted(folds) for case in cases[fold])
    kept = {entry: found for entry, found in scores.items() if found}
    return Gathered(kept, tuple(names), units, tuple(notes), barred)


def _unit(case: str, groups: Mapping[str, str]) -> str:
    """Return what a case is no independent example beside; the name of a group may be that of another case."""
    return f"group {groups[case]}" if case in groups else f"case {case}"


def _hindered(record: Record, dataset: str, runs: Runs) -> dict[str, str]:
    """Return {entry: reason} of those that failed in some runs or on some cases: they might be the hard ones."""
    reasons: dict[str, list[str]] = {}
    of_dataset = [run for run in record["runs"].values() if run.get("dataset") == dataset and run["entry"] in runs]
    failed: dict[str, list[str]] = {}
    for run in of_dataset:
        if "error" in run:
            failed.setdefault(run["entry"], []).append(f"fold {run['fold']}, seed {run['seed']} ({run['error']})")
        elif run.get("unscored"):
            reasons.setdefault(run["entry"], []).append(unscored_in_words(run))
    for entry, which in failed.items():
        reasons.setdefault(entry, []).insert(0, f"{len(which)} run(s) failed: {listed(which)}")
    return {entry: "; ".join([*said[:MOST_NAMED], *(["..."] if len(said) > MOST_NAMED else [])]) + "."
            for entry, said in reasons.items()}  # fmt: skip


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


def _common_cases(record: Record, runs: Runs, fold: str, notes: list[str]) -> list[str]:
    found = {(entry, seed): set(cases) for entry, of_folds in runs.items() for seed, cases in of_folds[fold].items()}
    common = sorted(set.intersection(*found.values()))
    left = sorted(set.union(*found.values()) - set(common))
    if left:
        lacking = dict.fromkeys(
            record["entries"][entry]["name"] for (entry, _), cases in found.items() if {*left} - cases
        )
        notes.append(
            f"Left out of fold {fold}, since not every run scored them ({listed(list(lacking))} did not): "
            f"{', '.join(left)}."
        )
    return common


def _array(of_seeds: dict[int, dict[str, Named]], cases: list[str], names: list[str]) -> np.ndarray:
    """Return the Dice (seeds, cases, names), NaN where undefined."""
    return np.array(
        [[[of_seeds[seed][case].get(name, {}).get("dice") for name in names] for case in cases]
         for seed in sorted(of_seeds)], dtype=float,
    )  # fmt: skip
