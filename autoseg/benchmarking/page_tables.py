"""The tables of the page: quality, cost, all pairs, labels, plans."""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from autoseg.benchmarking.record import RECIPES, Record
from autoseg.benchmarking.tables import finished_runs, mean_steps, seconds_of_a_step, voxels_per_step
from autoseg.benchmarking.verdict import Comparison, Standing, Verdict
from autoseg.reporting.charts import interval_bar
from autoseg.reporting.markup import DASH, Cell, Raw, chip, label, number, table, text

Names = Mapping[str, str]


def quality_table(verdict: Verdict, names: Names) -> str:
    """Return one row per method: Dice, the difference to the best with its interval, the rank and its stability."""
    best = verdict.standings[0].entry
    against = [c for c in (verdict.comparison(best, s.entry) for s in verdict.standings) if c is not None]
    ends = [-value for c in against for value in (c.interval or (c.difference,))] + [0.0]
    margin = 0.05 * (max(ends) - min(ends)) + 1e-4
    low, high = min(ends) - margin, max(ends) + margin
    rows = []
    for standing in verdict.standings:
        comparison = verdict.comparison(best, standing.entry) if standing.entry != best else None
        rows.append(
            [
                number(standing.rank, 0 if standing.rank == int(standing.rank) else 1),
                label(names[standing.entry]), number(standing.mean), _spread(standing),
                _gap(comparison, low, high), _told(comparison, best == standing.entry),
                Cell("" if comparison is None else f"{comparison.corrected:.2g}",
                     None if comparison is None else comparison.corrected),
                Cell(f"{standing.mean_rank:.1f} ({standing.rank_interval[0]:.0f}{DASH}{standing.rank_interval[1]:.0f})",
                     standing.mean_rank),
                number(standing.share_first, 2),
            ]
        )  # fmt: skip
    head = ["rank", "method", "Dice", "\u00b1 (runs)", "to the best", "", "corrected p", "mean rank", "first"]
    return table(head, rows, sortable=True, chosen=0 if verdict.winner else None)


def _spread(standing: Standing) -> Cell:
    shown = DASH if standing.deviation is None else f"{standing.deviation:.4f}"
    return Cell(f"{shown} ({standing.runs})", standing.deviation)


def _gap(comparison: Comparison | None, low: float, high: float) -> Cell:
    if comparison is None:
        return Cell("", None)
    span = None if comparison.interval is None else (-comparison.interval[1], -comparison.interval[0])
    shown = f"{-comparison.difference:+.4f}"
    if span is not None:
        shown += f" ({span[0]:+.3f} to {span[1]:+.3f})"
    return Cell(Raw(f"{shown}{interval_bar(-comparison.difference, span, low, high).markup}"), -comparison.difference)


def _told(comparison: Comparison | None, best: bool) -> Cell:
    if comparison is None:
        return label("best" if best else "")
    return label(chip("worse", "bad") if comparison.decided else chip("not told apart", "warn"))


def cost_table(record: Record, verdict: Verdict, names: Names) -> str:
    """Return one row per method: size, operations, times and memory."""
    rows = []
    for standing in verdict.standings:
        runs = finished_runs(record, verdict.dataset, standing.entry)
        costs = record["costs"].get(f"{verdict.dataset}/{standing.entry}", {})
        rows.append(
            [
                label(names[standing.entry]),
                number(runs[0]["parameters"] / 1e6, 2),
                number(_scaled(voxels_per_step(record, verdict.dataset, standing.entry), 1e6), 3),
                number(_scaled(costs.get("forward_flops"), 1e9), 2), number(_scaled(costs.get("step_flops"), 1e9), 1),
                Cell(f"{mean_steps(runs):,}", mean_steps(runs)), number(seconds_of_a_step(costs, runs), 4),
                _mean(runs, "train_cpu_seconds", 1), _mean(runs, "train_seconds", 1),
                _mean(runs, "inference_cpu_seconds", 2), _mean(runs, "inference_seconds", 2),
                number(_scaled(costs.get("peak_bytes"), 2**30), 2), _mean(runs, "peak_bytes", 2, 2**30),
            ]
        )  # fmt: skip
    head = [
        "method", "million weights", "million voxels per step", "GFLOP per patch predicted", "GFLOP per step", "steps",
        "s per step", "training, CPU s", "training, s", "a case, CPU s", "a case, s", "GiB training", "GiB whole run",
    ]  # fmt: skip
    return table(head, rows, sortable=True)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _mean(runs: list[dict[str, Any]], name: str, digits: int, unit: float = 1.0) -> Cell:
    values = [run[name] / unit for run in runs if run.get(name) is not None]
    return number(statistics.mean(values) if values else None, digits)


def matrix(verdict: Verdict, names: Names) -> str:
    """Return all pairs: row minus column in hundredths of Dice, coloured where decided."""
    rows = []
    for row in verdict.standings:
        cells = [label(f"{row.rank:g} {names[row.entry]}")]
        for column in verdict.standings:
            cells.append(_pair(verdict, row.entry, column.entry, names))
        rows.append(cells)
    return table(["", *(f"{standing.rank:g}" for standing in verdict.standings)], rows)


def _pair(verdict: Verdict, row: str, column: str, names: Names) -> Cell:
    found = verdict.comparison(row, column) if row != column else None
    if found is None:
        return Cell("", None)
    sign = 1 if found.first == row else -1
    gap = sign * found.difference
    span = "" if found.interval is None else f", {min(sign * e for e in found.interval):+.4f} to "
    span += "" if found.interval is None else f"{max(sign * e for e in found.interval):+.4f}"
    title = f"{names[row]} minus {names[column]}: {gap:+.4f}{span}, p {found.p:.2g} "
    title += f"(of ranks alone {found.rank_p:.2g}), corrected {found.corrected:.2g}"
    kind = ("good" if gap > 0 else "bad") if found.decided else "none"
    return Cell(
        Raw(f'<span class="{kind}" title="{text(title)}">{100 * gap:+.1f}</span>'), gap if found.decided else None
    )


def class_table(verdict: Verdict, names: Names, classes: Mapping[str, list[Any]]) -> str:
    """Return one row per method and one column per label."""
    rows = [
        [label(names[standing.entry]), *(number(values[index]) for values in classes.values())]
        for index, standing in enumerate(verdict.standings)
    ]
    return table(["method", *classes], rows, sortable=True)


def plan_table(record: Record) -> str:
    """Return one row per plan: what each network was given."""
    fields: dict[str, Callable[[dict[str, Any]], str]] = {
        "patch": lambda plan: " x ".join(map(str, plan["patch_size"])),
        "batch": lambda plan: str(plan["batch_size"]),
        "spacing": lambda plan: " x ".join(f"{edge:.3g}" for edge in plan["spacing"]),
        "options asked for": lambda plan: ", ".join(f"{k}={v}" for k, v in plan.get("network_options", {}).items()),
        "plans": lambda plan: plan["plans_name"],
    }
    rows = []
    for key, plan in record["plans"].items():
        dataset, _, architecture = key.partition("/")
        shown = [label(str(plan["error"]))] if "error" in plan else [label(get(plan)) for get in fields.values()]
        rows.append([label(dataset), label(architecture), *shown, *[label("")] * (len(fields) - len(shown))])
    return table(["data set", "network", *fields], rows, sortable=True)


def recipe_table(record: Record) -> str:
    """Return one row per data set and method with a recipe of its own: its trainer, and what it sets otherwise."""
    rows = []
    for dataset, data in record["datasets"].items():
        for key, entry in record["entries"].items():
            file = record.folder / RECIPES / dataset / f"{key}.toml"
            if entry["recipe"] == "common" or not file.is_file():
                continue
            own, common = tomllib.loads(file.read_text(encoding="utf-8")), data["recipe"]
            names = [name for name in own if own[name] != common.get(name) and not _follows_steps(name, own, common)]
            shown = ", ".join(f"{name}={own[name]}" for name in names) or "nothing"
            left = [name for name in common if name not in own]
            shown_left = label(", ".join(left))
            rows.append([label(dataset), label(entry["name"]), label(entry["trainer"]), label(shown), shown_left])
    return table(["data set", "method", "trainer", "sets", "leaves to the trainer"], rows, sortable=True)


def _follows_steps(name: str, own: Mapping[str, Any], common: Mapping[str, Any]) -> bool:
    """Return whether a difference is only that of the entry's steps: both have a warm-up, by their own number."""
    return name == "warmup_steps" and bool(own[name]) and bool(common.get(name))
