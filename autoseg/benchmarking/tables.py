"""The table of a campaign, `results.csv`: one row per run, and one row per finished run, case and label."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from autoseg.benchmarking.record import Record
from autoseg.benchmarking.told import warnings_of
from autoseg.benchmarking.verdict import Verdict
from autoseg.errors import UserError
from autoseg.storage import read_json, write_text

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TABLE_FILE = "results.csv"
MOST_NAMED = 3
METRICS = ("dice", "iou", "hd95", "nsd")
GIB = 2**30


class LabelScores(BaseModel):
    """What is read of the scores of one label of one case."""

    dice: Share | None = None
    iou: Share | None = None
    nsd: Share | None = None
    hd95: Annotated[float, Field(ge=0)] | None = None


SCORES = TypeAdapter(dict[str, dict[str, LabelScores]])


def write_tables(record: Record) -> None:
    """Write `results.csv` from the record and the scores of the runs; its column `kind` tells rows apart."""
    rows = [run_row(record, run) for run in record["runs"].values() if "dataset" in run]
    write_text(record.folder / TABLE_FILE, _csv([*rows, *_case_rows(record)]))


def run_row(record: Record, run: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a run."""
    entry = record["entries"].get(run["entry"], {})
    plan = record["plans"].get(f"{run['dataset']}/{entry.get('architecture')}", {})
    costs = record["costs"].get(f"{run['dataset']}/{run['entry']}", {})
    means = run.get("means", {})
    return {
        "kind": "run",
        **_about(record, run),
        "case": None,
        "label": None,
        "status": run.get("status", "failed"),
        **{metric: means.get(metric) for metric in METRICS},
        **{name: run.get("settings", {}).get(name) for name in ("optimizer", "learning_rate")},
        "cases": run.get("cases"),
        "steps": run.get("steps"),
        "step_seconds": _rounded(seconds_of_a_step(costs, [run] if run.get("status") == "finished" else [])),
        "parameters": run.get("parameters", costs.get("parameters")),
        "step_flops": costs.get("step_flops"),
        "forward_flops": costs.get("forward_flops"),
        "train_seconds": run.get("train_seconds"),
        "train_cpu_seconds": run.get("train_cpu_seconds"),
        "inference_seconds_per_case": run.get("inference_seconds"),
        "inference_cpu_seconds_per_case": run.get("inference_cpu_seconds"),
        "peak_gib_of_training": _gib(costs.get("peak_bytes")),
        "peak_gib_of_run": _gib(run.get("peak_bytes")),
        "network_options": " ".join(f"{name}={value}" for name, value in plan.get("network_options", {}).items()),
        "patch": " ".join(map(str, plan.get("patch_size", []))),
        "batch": plan.get("batch_size"),
        "precision": run.get("precision"),
        "threads": costs.get("threads"),
        "device": costs.get("device"),
        "warnings": " | ".join(warnings_of(record, run)),
        "error": run.get("error") or (unscored_in_words(run) if run.get("unscored") else None),
    }


def standing_rows(record: Record, verdict: Verdict) -> list[dict[str, Any]]:
    """Return the standings of a data set with their costs, best first, for a table."""
    rows = []
    for standing in verdict.standings:
        runs = finished_runs(record, verdict.dataset, standing.entry)
        costs = record["costs"].get(f"{verdict.dataset}/{standing.entry}", {})
        found = verdict.comparison(verdict.standings[0].entry, standing.entry) if rows else None
        rows.append(
            {
                "method": record["entries"][standing.entry]["name"],
                "runs": standing.runs,
                "Dice": standing.mean,
                "\u00b1": standing.deviation,
                "to the best": None if found is None else -found.difference,
                "": "" if found is None else "worse" if found.decided else "not told apart",
                "first": f"{standing.share_first:.2f}",
                "steps": mean_steps(runs),
                "M weights": f"{runs[0]['parameters'] / 1e6:.2f}",
                "s/step": _rounded(seconds_of_a_step(costs, runs)),
                "train s": round(statistics.mean(run["train_seconds"] for run in runs)),
                "s/case": f"{statistics.mean(run['inference_seconds'] for run in runs):.2f}",
                "GiB": f"{(costs.get('peak_bytes') or 0) / GIB:.2f}",
            }
        )
    return rows


def voxels_per_step(record: Record, dataset: str, entry: str) -> int | None:
    """Return patch times batch of a competitor's plan, None where it has none."""
    plan = record["plans"].get(f"{dataset}/{record['entries'][entry]['architecture']}", {})
    return None if "patch_size" not in plan else math.prod(plan["patch_size"]) * plan["batch_size"]


def unscored_in_words(run: Mapping[str, Any]) -> str:
    """Return which cases a finished run has no scores of, and why."""
    which = [f"{case} ({reason})" for case, reason in run["unscored"].items()]
    return f"fold {run['fold']}, seed {run['seed']} could not score {len(which)} case(s): {listed(which)}"


def listed(which: Sequence[str], most: int = MOST_NAMED) -> str:
    """Return the first names, and how many there are more."""
    return ", ".join(which[:most]) + (f" and {len(which) - most} more" if len(which) > most else "")


def finished_runs(record: Record, dataset: str, entry: str) -> list[dict[str, Any]]:
    """Return the finished runs of an entry on a data set."""
    return [
        run
        for run in record["runs"].values()
        if run.get("status") == "finished" and (run["dataset"], run["entry"]) == (dataset, entry)
    ]


def training_seconds(costs: Mapping[str, Any], run: Mapping[str, Any]) -> float | None:
    """Return what the training of a run took: on a CPU processor time over threads, on a GPU time of the clock."""
    if costs.get("clock") != "cpu":
        return run.get("train_seconds")
    took = run.get("train_cpu_seconds")
    return None if took is None else took / costs["threads"]


def seconds_of_a_step(costs: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds of a step in finished runs, all of a training counted; before there are any, as timed."""
    took = [(seconds, run["steps"]) for run in runs if (seconds := training_seconds(costs, run)) and run["steps"]]
    if not took:
        return costs.get("seconds")
    return sum(seconds for seconds, _ in took) / sum(steps for _, steps in took)


def mean_steps(runs: Sequence[Mapping[str, Any]]) -> int:
    """Return the steps of a run, where runs of equal time made different numbers the rounded mean."""
    return round(statistics.mean(run["steps"] for run in runs))


def scores_of(record: Record, run: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return case -> label -> metric -> value of a finished run; raises UserError where the file does not tell them."""
    file = scores_file(record, run)
    content = read_json(file)
    try:
        SCORES.validate_python(content.get("cases") if isinstance(content, dict) else None)
    except ValidationError as error:
        place, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise UserError(f"this is no file of scores: {place or 'cases'}: {what}", where=file) from None
    return content["cases"]


def scores_file(record: Record, run: Mapping[str, Any]) -> Path:
    """Return where the scores of a finished run are."""
    return record.folder / run["folder"] / "validation" / "summary.json"


def _about(record: Record, run: Mapping[str, Any]) -> dict[str, Any]:
    entry = record["entries"].get(run["entry"], {})
    return {
        "dataset": run["dataset"],
        "configuration": record["datasets"].get(run["dataset"], {}).get("configuration"),
        "entry": entry.get("name"),
        "architecture": entry.get("architecture"),
        "trainer": entry.get("trainer"),
        "recipe": entry.get("recipe"),
        "fold": run["fold"],
        "seed": run["seed"],
    }


def _case_rows(record: Record) -> Iterator[dict[str, Any]]:
    for run in record["runs"].values():
        if run.get("status") != "finished":
            continue
        about = {"kind": "case", **_about(record, run), "status": run["status"]}
        for case, named in scores_of(record, run).items():
            for label, scores in named.items():
                yield {**about, "case": case, "label": label, **{metric: scores.get(metric) for metric in METRICS}}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")


def _gib(count: float | None) -> float | None:
    return None if count is None else round(count / GIB, 3)
