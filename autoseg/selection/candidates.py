"""Candidates (single configurations and pairs), compared on the same cases."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.evaluation.summary import bootstrap_interval, column_means, mean_of_defined, score_table
from autoseg.selection.runs import Experiment

MAX_PAIRED = 4  # with many experiments only the best few are paired: six ensembles cost four predictions per case


@dataclass(frozen=True)
class Candidate:
    """One experiment, or the ensemble of two, with the Dice of every compared case."""

    name: str
    experiments: tuple[Experiment, ...]
    scores: Mapping[str, Mapping[str, Any]]  # case -> name -> metric -> value

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """Return name, members, score, interval and class means as plain JSON values."""
        table = score_table(self.scores, list(names))
        means = column_means(table)
        foreground = mean_of_defined(means)
        return {
            "name": self.name,
            "members": [experiment.name for experiment in self.experiments],
            "folds": [list(experiment.chosen_runs) for experiment in self.experiments],
            "cases": len(self.scores),
            "foreground_dice": None if np.isnan(foreground) else foreground,
            "interval": bootstrap_interval(table),
            "class_dice": {
                name: None if np.isnan(mean) else float(mean) for name, mean in zip(names, means, strict=True)
            },
        }


def display_names(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Return a short name for every experiment: its configuration where that is unique, else its full name."""
    used = [experiment.configuration for experiment in experiments]
    return {e.name: e.configuration if used.count(e.configuration) == 1 else e.name for e in experiments}


def fair_field(experiments: Sequence[Experiment]) -> tuple[list[Experiment], list[str], list[str]]:
    """Return the experiments that compete, the cases they are compared on, and notes.

    Scores on training cases (fold "all") do not compete with out-of-fold scores. All are compared on the cases that
    every one of them validated; if there are none, each on its own cases (an empty list).
    """
    notes = []
    field = [experiment for experiment in experiments if experiment.out_of_fold]
    if field:
        notes += [
            f"{e.name} has only the fold 'all', whose scores are on its own training cases: it does not compete"
            for e in experiments
            if not e.out_of_fold
        ]
    else:
        field = list(experiments)
        notes.append("only runs of fold 'all' exist: scores are on training cases and too good")
    validated = [set(experiment.run_of_case) for experiment in field]
    common = sorted(set.intersection(*validated))
    if not common:
        notes.append("no case was validated by all candidates: each is scored on its own cases")
    elif len(common) < max(map(len, validated)):
        notes.append(f"compared on the {len(common)} case(s) that all candidates validated; more folds give more")
    return field, common, notes


def pairs_to_try(experiments: Sequence[Experiment], singles: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return index pairs to ensemble: every pair, of the best few only if there are many experiments."""
    ranked = sorted(range(len(experiments)), key=lambda index: -_score(singles[index]))
    return list(itertools.combinations(sorted(ranked[:MAX_PAIRED]), 2))


def best_of(records: Sequence[dict[str, Any]]) -> int:
    """Return the index of the best score; ties go to the earlier one."""
    return max(range(len(records)), key=lambda index: (_score(records[index]), -index))


def _score(record: dict[str, Any]) -> float:
    return -1.0 if record["foreground_dice"] is None else record["foreground_dice"]
