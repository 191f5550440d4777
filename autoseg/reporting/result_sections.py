"""The sections on what came out: cross-validation, cases, selection, test sets."""

from __future__ import annotations

import statistics
from typing import Any

from autoseg.evaluation import summarize
from autoseg.reporting.charts import interval_bar, strip_chart
from autoseg.reporting.markup import (
    Cell,
    Raw,
    bullets,
    chip,
    folded,
    interval_text,
    label,
    missing,
    note,
    number,
    section,
    table,
    text,
)
from autoseg.reporting.material import ExperimentMaterial, Material

_RULES = (
    "Dice, IoU and NSD are 0 when only one of prediction and reference is empty, and undefined (left out) when both "
    "are. HD95 is undefined in both cases; the column \u201cno HD95\u201d counts the former. "
    "Intervals: bootstrap over cases, 95 %."
)


def validation_section(material: Material) -> str:
    """Return the cross-validation table of all experiments, and scores by label and case of the best one."""
    summaries = {e.name: summarize(e.scores) for e in material.experiments if e.scores}
    if not summaries:
        empty = missing("No validation case has been scored yet; that happens when a fold is finished.")
        return section("validation", "Cross-validation", empty)
    scored = [experiment for experiment in material.experiments if experiment.name in summaries]
    parts = [_experiments(scored, summaries)]
    best = material.best_experiment
    for experiment in sorted(scored, key=lambda e: e is not best):
        summary = summaries[experiment.name]
        content = by_label(summary) + _strips(summary) + by_case(summary)
        title = f"{experiment.configuration}, {experiment.trainer}, {experiment.plans_name}: labels and cases"
        parts.append(f"<h3>{text(title)}</h3>{content}" if experiment is best else folded(title, content))
    return section("validation", "Cross-validation", "".join(parts) + note(_RULES))


def selection_section(material: Material) -> str:
    """Return what was selected, from what, and with which post-processing."""
    if material.model is None:
        return section(
            "selection", "Selection", missing("No model has been selected yet: autoseg find-best does that.")
        )
    selection = material.model.selection
    candidates = selection.get("candidates", [])
    parts = []
    if candidates:
        chosen = next((i for i, c in enumerate(candidates) if c["name"] == selection.get("best")), None)
        names = list(candidates[0]["class_dice"])
        ends = _ends([(c["foreground_dice"], c["interval"]) for c in candidates])
        rows = [
            [
                label(c["name"]),
                Cell(str(c["cases"]), c["cases"]),
                _with_bar(c["foreground_dice"], c["interval"], ends),
                *(number(c["class_dice"].get(name)) for name in names),
            ]
            for c in candidates
        ]
        parts.append(f"<p>Selected: <b>{text(selection.get('best', ''))}</b>.</p>")
        parts.append(table(["candidate", "cases", "foreground Dice", *names], rows, chosen=chosen))
    parts.append(bullets(selection.get("notes", [])))
    parts.append(_postprocessing(selection.get("postprocessing", [])))
    members = [
        [
            label(m.name if m.in_ensemble else f"{m.name} (previous stage)"),
            label(m.configuration),
            label(m.architecture),
            label(", ".join(m.folds)),
        ]
        for m in material.model.members
    ]
    parts.append(f"<h3>Model folder</h3>{table(['member', 'configuration', 'architecture', 'folds'], members)}")
    return section("selection", "Selection and post-processing", "".join(parts))


def test_section(material: Material) -> str:
    """Return the scores on other cases than the training cases, if there are any."""
    if not material.evaluations:
        return section(
            "test", "Test set", missing("No evaluation of a test set was found in the results folder or given.")
        )
    parts = []
    for title, stored in material.evaluations:
        summary = summarize(stored["cases"], tolerance_mm=stored.get("tolerance_mm", 1.0))
        dice, interval = summary["foreground_mean"]["dice"], summary["bootstrap"]["dice"]
        figure = "undefined" if dice is None else f"{dice:.3f}"
        parts.append(f"<h3>{text(title)}: {len(summary['cases'])} cases, foreground Dice {figure}</h3>")
        parts.append(
            note(f"{interval_text(interval)}. NSD tolerance {summary['tolerance_mm']:g} mm." if interval else "")
        )
        failed = [f"{case}: {reason}" for case, reason in stored.get("failed", {}).items()]
        parts.append(bullets([f"not scored: {entry}" for entry in failed]))
        parts.append(by_label(summary) + _strips(summary) + folded("all cases", by_case(summary)))
    return section("test", "Test set", "".join(parts))


def by_label(summary: dict[str, Any]) -> str:
    """Return the table of means by label."""
    rows = []
    for name, mean in summary["mean"].items():
        dice = [d for named in summary["cases"].values() if (d := named.get(name, {}).get("dice")) is not None]
        rows.append(
            [
                label(name), Cell(str(mean["cases"]), mean["cases"]), number(mean["dice"]),
                number(statistics.median(dice) if dice else None), number(min(dice, default=None)),
                number(mean["iou"]), number(mean["hd95"], 2), Cell(str(mean["hd95_missing"]), mean["hd95_missing"]),
                number(mean["nsd"]), number(mean["volume_reference_ml"], 2), number(mean["volume_prediction_ml"], 2),
            ]
        )  # fmt: skip
    head = [
        "label", "cases", "mean Dice", "median Dice", "lowest Dice", "IoU", "HD95 [mm]", "no HD95", "NSD",
        "reference [ml]", "prediction [ml]",
    ]  # fmt: skip
    return table(head, rows)


def by_case(summary: dict[str, Any]) -> str:
    """Return the sortable table with one row per case and label, worst Dice first."""
    rows = [
        [
            label(case), label(name), number(scores.get("dice")), number(scores.get("iou")),
            number(scores.get("hd95"), 2), number(scores.get("nsd")), number(scores.get("volume_reference_ml"), 3),
            number(scores.get("volume_prediction_ml"), 3),
        ]
        for case, named in summary["cases"].items()
        for name, scores in named.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: (row[2].value is None, row[2].value or 0))
    head = ["case", "label", "Dice", "IoU", "HD95 [mm]", "NSD", "reference [ml]", "prediction [ml]"]
    return note("Click a column to sort.") + table(head, rows, sortable=True)


def _experiments(experiments: list[ExperimentMaterial], summaries: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for summary in summaries.values() for name in summary["mean"]))
    ends = _ends([(s["foreground_mean"]["dice"], s["bootstrap"]["dice"]) for s in summaries.values()])
    rows = []
    for experiment in experiments:
        summary = summaries[experiment.name]
        folds = [run.fold for run in experiment.runs if run.summary]
        means = summary["foreground_mean"]
        rows.append(
            [
                label(experiment.configuration), label(f"{experiment.trainer}, {experiment.plans_name}"),
                label(", ".join(folds)), Cell(str(len(summary["cases"])), len(summary["cases"])),
                _with_bar(means["dice"], summary["bootstrap"]["dice"], ends),
                *(number(summary["mean"].get(name, {}).get("dice")) for name in names),
                number(means["hd95"], 2), number(means["nsd"]),
            ]
        )  # fmt: skip
    head = ["configuration", "trainer, plans", "folds", "cases", "foreground Dice", *names, "HD95 [mm]", "NSD"]
    return table(head, rows)


def _strips(summary: dict[str, Any]) -> str:
    groups: dict[str, list[tuple[str, float]]] = {name: [] for name in summary["mean"]}
    for case, named in summary["cases"].items():
        for name, scores in named.items():
            if scores.get("dice") is not None:
                groups[name].append((case, scores["dice"]))
    return strip_chart("Dice of every case; the bar is the median", groups)


def _postprocessing(trials: list[dict[str, Any]]) -> str:
    if not trials:
        return ""
    rows = []
    for trial in trials:
        whole = trial is trials[0]
        key = "foreground_mean" if whole or len(trial["names"]) != 1 else trial["names"][0]
        what = "all foreground together" if whole else ", ".join(trial["names"])
        rows.append(
            [
                label(f"keep the largest component of {what}"),
                label("foreground mean" if key == "foreground_mean" else key),
                number(trial["before"].get(key), 4), number(trial["after"].get(key), 4),
                Cell(chip("used", "good") if trial["accepted"] else Raw("not used"), str(trial["accepted"]), left=True),
            ]
        )  # fmt: skip
    return f"<h3>Post-processing</h3>{table(['rule', 'Dice of', 'before', 'after', ''], rows)}"


def _with_bar(value: float | None, interval: list[float] | None, ends: tuple[float, float]) -> Cell:
    if value is None:
        return number(None)
    span = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return Cell(Raw(f"{value:.3f}{span}{interval_bar(value, interval, *ends).markup}"), value)


def _ends(values: list[tuple[float | None, list[float] | None]]) -> tuple[float, float]:
    """Return the common scale of all interval bars."""
    numbers = [n for value, interval in values for n in ([value] if value is not None else []) + list(interval or [])]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    margin = max(0.05 * (high - low), 0.005)
    return low - margin, high + margin
