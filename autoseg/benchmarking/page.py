"""The page of a campaign: one self-contained HTML file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.benchmarking.page_tables import (
    class_table,
    cost_table,
    matrix,
    plan_table,
    quality_table,
    recipe_table,
)
from autoseg.benchmarking.record import Record
from autoseg.benchmarking.tables import TABLE_FILE, finished_runs, seconds_of_a_step
from autoseg.benchmarking.told import warnings_on
from autoseg.benchmarking.verdict import Overall, Verdict
from autoseg.benchmarking.words import stability_sentences, verdict_sentences
from autoseg.reporting.charts import scatter_chart
from autoseg.reporting.markup import (
    Cell,
    bullets,
    chip,
    duration,
    figure,
    folded,
    label,
    missing,
    note,
    number,
    pairs,
    table,
    text,
)
from autoseg.reporting.markup import section as html_section
from autoseg.reporting.shell import shell
from autoseg.storage import write_text

PAGE_FILE = "index.html"
_HOW = (
    "Every method sees the same training cases, patches are augmented alike, and each run gets the same budget. Means "
    "are over seeds, then cases, then labels; a label that neither prediction nor reference shows is left out, as in "
    "every evaluation of autoseg. Intervals are 95 % percentiles of 2000 bootstrap draws: cases are drawn with "
    "replacement, whole patients where the data set groups cases, the same for all methods, and the seeds of each "
    "method within. p is the largest of three tests: Wilcoxon's signed ranks on the mean Dice of each case (or "
    "patient); Student's t of the difference by the deviation between runs of one method (seeds, or folds where there "
    "is one seed); with three folds and more, Student's t of the difference from fold to fold. It is corrected by Holm "
    "over all pairs of all data sets of this page. A method is called better only if the interval of the difference "
    "excludes zero, the corrected p is below 0.05 and the ranks say the same as the mean; a winner has more than one "
    "run, failed in none and on no case, and is better than every other."
)

_OWN = (
    "What a method's own or published recipe sets otherwise than the common one, and its trainer: where no trainers "
    "were asked for, the one that has the loss of the network's authors. A published recipe is as published at any "
    "length, and nnU-Net's where the authors name none. An own recipe is the published one in runs of 20,000 steps and "
    "more; in shorter ones the learning rate of AdamW is raised as much as the common one is, at most to that, and SGD "
    "gives way to the common optimiser: published rates are meant for long runs."
)


def write_page(
    record: Record,
    verdicts: list[Verdict],
    overall: list[Overall],
    classes: Mapping[str, Mapping[str, list[Any]]],
    waiting: Mapping[str, Sequence[str]],
) -> None:
    """Write `index.html`.

    `classes`: data set -> label -> Dice of the standings, best first; `waiting`: data set of which nothing can be
    compared -> what is known of that.
    """
    names = {key: entry["name"] for key, entry in record["entries"].items()}
    sections = [_dataset_section(record, verdict, names, classes[verdict.dataset]) for verdict in verdicts]
    sections += [html_section(_anchor(name), name, _nothing_yet(record, name, said)) for name, said in waiting.items()]
    if overall:
        sections.append(_overall_section(overall, names, len(verdicts)))
    sections += [_setup_section(record), _runs_section(record)]
    links = [(_anchor(name), name) for name in (*(verdict.dataset for verdict in verdicts), *waiting)]
    links += [("overall", "All data sets")] if overall else []
    links += [("how", "How it was compared"), ("runs", "Runs")]
    page = shell(
        record.content["name"],
        kind="benchmark",
        subtitle=f"<p>{text(_question(record))}</p>",
        figures=_figures(record, verdicts, names),
        navigation=links,
        sections=sections,
    )
    write_text(record.folder / PAGE_FILE, page)


def _nothing_yet(record: Record, dataset: str, notes: Sequence[str]) -> str:
    """Return why a data set has no verdict: nothing is finished, or what is finished has no case in common."""
    finished = any(run.get("status") == "finished" and run["dataset"] == dataset for run in record["runs"].values())
    words = "The finished runs have no scored case in common." if finished else "No run is finished yet."
    return missing(words) + bullets(list(notes))


def _question(record: Record) -> str:
    question = record["question"]
    amount = {"steps": f"{question['budget']:g} steps", "flops": f"{question['budget']:.4g} operations"}
    what = amount.get(question["equal"], f"{duration(question['budget'])} of training")
    methods = {run["entry"] for run in record["runs"].values() if "dataset" in run}
    return f"{len(methods)} methods on {len(record['datasets'])} data set(s), {what} for every run"


def _figures(record: Record, verdicts: list[Verdict], names: Mapping[str, str]) -> str:
    runs = [run for run in record["runs"].values() if "dataset" in run]
    finished = [run for run in runs if run.get("status") == "finished"]
    shown = []
    for verdict in verdicts[:4]:
        best = verdict.standings[0]
        winner = names[verdict.winner] if verdict.winner else "no winner"
        shown.append(figure(verdict.dataset, winner, f"highest Dice {best.mean:.3f}, {names[best.entry]}"))
    shown.append(figure("finished runs", f"{len(finished)} of {len(runs)}"))
    shown.append(figure("training time", duration(sum(run.get("train_seconds") or 0 for run in finished))))
    return "".join(shown)


def _dataset_section(
    record: Record, verdict: Verdict, names: Mapping[str, str], classes: Mapping[str, list[Any]]
) -> str:
    word = chip("a winner", "good") if verdict.winner else chip("no winner", "warn")
    parts = [f"<p>{word.markup} {text(' '.join(verdict_sentences(verdict, names)))}</p>"]
    parts += [f"<p>{text(sentence)}</p>" for sentence in stability_sentences(verdict, names)]
    parts.append(bullets([*verdict.notes, *warnings_on(record, verdict.dataset)]))
    parts.append(f"<h3>Quality</h3>{quality_table(verdict, names)}")
    parts.append(
        note(
            "\u00b1: standard deviation of the mean Dice between runs (seeds and folds), and how many there are. Mean "
            "rank (with the ranks of 95 % of draws) and share of first places: over bootstrap draws of cases and seeds."
        )
    )
    parts.append(f"<h3>Cost</h3>{cost_table(record, verdict, names)}")
    parts.append(
        note(
            "Operations counted: matrix products, convolutions, attention and scans; a multiply-add is two. Seconds of "
            "a step: all of training over its steps, on a CPU in processor time over threads."
        )
    )
    parts.append(_charts(record, verdict, names))
    if len(verdict.standings) > 1:
        parts.append(f"<h3>All pairs</h3>{matrix(verdict, names)}")
        parts.append(
            note(
                "Row minus column, in hundredths of Dice. Coloured: one is better; grey: not told apart. Point at a "
                "cell for interval and p."
            )
        )
    if len(classes) > 1:
        parts.append(folded("Dice by label", class_table(verdict, names, classes)))
    return html_section(_anchor(verdict.dataset), f"{verdict.dataset}, {verdict.cases} cases", "".join(parts))


def _charts(record: Record, verdict: Verdict, names: Mapping[str, str]) -> str:
    kinds = {
        "million weights": lambda run, costs: run["parameters"] / 1e6,
        "seconds of training": lambda run, costs: run.get("train_cpu_seconds") or run["train_seconds"],
        "milliseconds of a step": lambda run, costs: 1000 * (seconds_of_a_step(costs, [run]) or 0),
        "10\u2079 operations of predicting a patch": lambda run, costs: (costs.get("forward_flops") or 0) / 1e9,
        "seconds of predicting a case": lambda run, costs: run.get("inference_cpu_seconds") or run["inference_seconds"],
    }
    if record["question"]["equal"] == "time":
        del kinds["seconds of training"]
    charts = []
    for across, value in kinds.items():
        points = {}
        for standing in verdict.standings:
            costs = record["costs"].get(f"{verdict.dataset}/{standing.entry}", {})
            values = [value(run, costs) for run in finished_runs(record, verdict.dataset, standing.entry)]
            points[names[standing.entry]] = (f"{standing.rank:g}", statistics.mean(values), standing.mean)
        charts.append(scatter_chart(f"Dice and {across}", points, across=across))
    return f'<div class="charts">{"".join(charts)}</div>' + note(
        "Numbers are ranks; stressed are methods that none beats in both. Point at a dot for its name."
    )


def _overall_section(overall: list[Overall], names: Mapping[str, str], datasets: int) -> str:
    rows = [
        [
            label(names[one.entry]), number(one.mean_rank, 2),
            Cell(f"{one.rank_interval[0]:.1f} to {one.rank_interval[1]:.1f}", one.rank_interval[0]),
            number(one.share_first, 2),
        ]
        for one in overall
    ]  # fmt: skip
    head = ["method", "mean rank", "95 % of draws", "share of first places"]
    words = note(
        f"Ranks among the methods that ran on all {datasets} data sets, averaged over data sets in every bootstrap "
        "draw. Overlapping intervals mean that the order may be another one."
    )
    return html_section("overall", "All data sets", table(head, rows, sortable=True) + words)


def _setup_section(record: Record) -> str:
    question = record["question"]
    rows = [
        ("equal", f"{question['equal']}: {question['budget']:g}"),
        ("planner", question["planner"] if question["plans"] is None else f"plans {question['plans']} for all"),
        ("device", f"{question['device']}, {record.content['threads']} thread(s) per run"),
    ]
    if question["settings"]:
        rows.append(("settings", ", ".join(f"{name}={value}" for name, value in question["settings"].items())))
    for name, data in record["datasets"].items():
        recipe = ", ".join(f"{key}={value}" for key, value in data["recipe"].items())
        rows.append((f"common recipe, {name}", f"{recipe} (that of {data['reference_steps']} steps)"))
    rows.append(("autoseg", record.content["autoseg"]))
    parts = [f"<p>{text(_HOW)}</p>", pairs(rows)]
    if question["equal"] == "time":
        parts.append(
            note(
                "Equal time: each run ended, fully annealed, when its training had taken that time, in processor "
                "seconds of all threads over their number (on a GPU: seconds of the clock); loading and augmentation "
                "count, waiting for a processor does not. Learning rates follow that time. The common recipe and "
                "warm-ups follow the steps that fit into it, by some timed before. Other programs on the same machine "
                "make steps dearer, so that fewer are made: compare on a quiet one. With --deterministic the steps "
                "timed before decide, and times may differ: where that shows, it is said beside the verdict."
            )
        )
    parts.append(folded("Plans", plan_table(record)))
    kinds = {entry["recipe"] for entry in record["entries"].values()}
    special = " and ".join(kind for kind in ("own", "published") if kind in kinds)
    if special:
        parts.append(folded(f"{special} recipes".capitalize(), recipe_table(record) + note(_OWN)))
    return html_section("how", "How it was compared", "".join(parts))


def _runs_section(record: Record) -> str:
    failed = [f"{key}: {run['error']}" for key, run in record["runs"].items() if "error" in run]
    skipped = [f"{key}: {reason}" for key, reason in record["skipped"].items()]
    parts = [note(f"All figures: {TABLE_FILE} (rows of kind run; and of kind case, by run, case and label).")]
    parts.append(f"<h3>Failed</h3>{bullets(failed)}" if failed else "<p>No run failed.</p>")
    if skipped:
        parts.append(f"<h3>Left out</h3>{bullets(skipped)}")
    return html_section("runs", "Runs", "".join(parts))


def _anchor(name: str) -> str:
    return f"data-{name}"
