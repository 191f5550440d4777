"""Which "keep the largest component" rules help on the pooled cross-validation predictions.

Source: the choice of post-processing, Isensee et al. 2021 (nnU-Net v2 rules): (a) the union of all foreground:
accepted if the foreground mean Dice strictly increases and no class gets worse; (b) then every class in order, from the
result accepted so far: accepted if its mean Dice strictly increases (and, which matters for regions only, none gets
worse).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoseg.evaluation.summary import column_means, mean_of_defined
from autoseg.labels import Labels
from autoseg.model_folder import PostprocessingStep
from autoseg.selection.components import ComponentTable, ValueSet, value_sets


@dataclass(frozen=True)
class Postprocessing:
    """The accepted steps, and every trial in words and figures for the report."""

    steps: tuple[PostprocessingStep, ...]
    trials: tuple[dict[str, Any], ...]
    foreground_dice: float | None  # after the accepted steps


def determine_postprocessing(
    tables: Mapping[str, ComponentTable],
    labels: Labels,
    *,
    annotated: Mapping[str, Collection[str] | None] | None = None,
    convincing: bool = True,
) -> Postprocessing:
    """Return the rules that raise the cross-validation Dice; tables by case, made with `value_sets(labels)`.

    Without `convincing` (the cases were trained on, or are too few) rules are tried for the report and none is taken.
    `annotated`: for some cases the names that their reference shows; other names do not count there.
    """
    groups = value_sets(labels)
    kept = {case: table.all_kept() for case, table in tables.items()}
    means = _class_means(tables, kept, labels, annotated)
    steps, trials = [], []
    for position, group in enumerate(groups):
        tried = {case: table.keep_largest(position, kept[case]) for case, table in tables.items()}
        new = _class_means(tables, tried, labels, annotated)
        target = [index for index, members in enumerate(labels.members) if set(members) == set(group)]
        accepted = convincing and _better(means, new, None if position == 0 else target)
        trials.append(_trial(group, labels, means, new, accepted))
        if accepted:
            steps.append(PostprocessingStep(values=group))
            kept, means = tried, new
    overall = mean_of_defined(means)
    return Postprocessing(tuple(steps), tuple(trials), None if np.isnan(overall) else overall)


def _class_means(
    tables: Mapping[str, ComponentTable],
    kept: Mapping[str, np.ndarray],
    labels: Labels,
    annotated: Mapping[str, Collection[str] | None] | None,
) -> np.ndarray:
    rows = []
    for case, table in tables.items():
        dice = table.dice(kept[case], labels)
        shown = (annotated or {}).get(case)
        rows.append([dice[name] if shown is None or name in shown else None for name in labels.names])
    return column_means(np.array(rows, dtype=np.float64).reshape(len(rows), len(labels.names)))


def _better(old: np.ndarray, new: np.ndarray, names: list[int] | None) -> bool:
    """Return whether a rule is accepted; `names`: the classes that must gain, None: the foreground mean must."""
    if bool((new < old).any()):  # comparisons with NaN (a class without any Dice) are False
        return False
    if names is None:
        return mean_of_defined(new) > mean_of_defined(old)
    return any(new[index] > old[index] for index in names)


def _trial(group: ValueSet, labels: Labels, old: np.ndarray, new: np.ndarray, accepted: bool) -> dict[str, Any]:
    names = [name for name, members in zip(labels.names, labels.members, strict=True) if set(members) <= set(group)]
    return {
        "rule": "keep_largest",
        "values": list(group),
        "names": names,
        "before": _figures(old, labels),
        "after": _figures(new, labels),
        "accepted": accepted,
    }


def _figures(means: np.ndarray, labels: Labels) -> dict[str, float | None]:
    figures = dict(zip(labels.names, means, strict=True)) | {"foreground_mean": mean_of_defined(means)}
    return {name: None if np.isnan(value) else float(value) for name, value in figures.items()}
