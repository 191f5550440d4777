"""The table of all architectures from a campaign of the referee: parameters, operations, step time, memory and Dice.

    python benchmarks/architecture_table.py CAMPAIGN WORKSPACE FLAT_DATASET DEEP_DATASET

CAMPAIGN is the folder of `autoseg benchmark`, WORKSPACE the one that it ran in. Parameters of the published
configurations are counted by `published_sizes.py`, operations anew from the plans, as the referee counts them, on a
CPU. Memory is the traced estimate of a training step at the 3D plan, single precision. Training seconds are processor
seconds over threads, the mean of the seeds. Where a network has several seeds, Dice is their mean and their range.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tomllib
from pathlib import Path

from published_sizes import PUBLISHED, ours

from autoseg import plugins
from autoseg.planning.memory import trace_training
from autoseg.raw import open_dataset
from autoseg.storage import read_json
from autoseg.training.asked import configure, read_plans
from autoseg.training.costs import count_operations
from autoseg.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def millions(count: float | None) -> str:
    """Return a count in millions, "-" for none."""
    return "-" if count is None else f"{count / 1e6:.2f}"


def dice(rows: list[dict[str, str]]) -> str:
    """Return mean and range of Dice over the finished seeds."""
    found = [float(row["dice"]) for row in rows if row["status"] == "finished"]
    if not found:
        return "failed" if any(row["status"] == "failed" for row in rows) else "not run"
    spread = f" ({min(found):.3f}-{max(found):.3f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}"


def plan_of(row: dict[str, str], campaign: Path) -> str:
    """Return the name of the plans that a run was trained by."""
    return read_json(campaign / "benchmark.json")["plans"][f"{row['dataset']}/{row['architecture']}"]["plans_name"]


def traced(row: dict[str, str], options: argparse.Namespace) -> str:
    """Return the estimate in MiB of the peak memory of a training step at the plan of a run."""
    workspace, dataset = Workspace.open(options.workspace), reference_of(row, options.campaign)
    plans = read_plans(row["dataset"], plan_of(row, options.campaign), workspace)
    planned = configure(
        plans, row["configuration"], row["architecture"], dataset=open_dataset(dataset, workspace), workspace=workspace
    )
    kind = plugins.load("architecture", planned.architecture)
    estimate = trace_training(kind, planned.network, planned.batch_size, precision="fp32", optimizer="adamw")
    return f"{estimate.peak / 2**20:.0f}"


def reference_of(row: dict[str, str], campaign: Path) -> str:
    """Return what finds the data set of a run."""
    return read_json(campaign / "benchmark.json")["datasets"][row["dataset"]]["reference"]


def counted(row: dict[str, str], options: argparse.Namespace) -> str:
    """Return the operations of a training step in thousands of millions, counted as the referee does."""
    method = f"{row['architecture']}-{row['trainer']}-{row['recipe']}"
    step, _ = count_operations(
        reference_of(row, options.campaign),
        row["configuration"],
        trainer=row["trainer"],
        plans_name=plan_of(row, options.campaign),
        architecture=row["architecture"],
        fold=row["fold"],
        recipe=options.campaign / "recipes" / row["dataset"] / f"{method}.probe.toml",
        device="cpu",
        workspace=options.workspace,
    )
    return "-" if step is None else f"{step / 1e9:.1f}"


def seconds(rows: list[dict[str, str]]) -> str:
    """Return the processor seconds of training over the threads, the mean of the finished seeds."""
    found = [
        float(row["train_cpu_seconds"]) / int(row["threads"])
        for row in rows
        if row["status"] == "finished" and row["train_cpu_seconds"]
    ]
    return f"{statistics.mean(found):.0f}" if found else "-"


def half(rows: list[dict[str, str]], options: argparse.Namespace, *, memory: bool) -> list[str]:
    """Return the cells of one data set."""
    if not rows:
        return ["-"] * (7 if memory else 6)
    first = next((row for row in rows if row["status"] == "finished"), rows[0])
    cells = [
        millions(float(first["parameters"])) if first["parameters"] else "-",
        counted(first, options),
        f"{float(first['step_seconds']):.2f}" if first["step_seconds"] else "-",
        first["steps"] or "-",
        seconds(rows),
    ]
    return [*cells, *([traced(first, options)] if memory else []), dice(rows)]


def main(arguments: list[str] | None = None) -> None:
    """Print one Markdown row per network, in the order of docs/architectures.toml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("campaign", "workspace"):
        parser.add_argument(name, type=Path)
    for name in ("flat", "deep"):
        parser.add_argument(name, help="a data set of the campaign, or one that it does not have")
    options = parser.parse_args(arguments)
    with (options.campaign / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "run"]
    with (ROOT / "docs" / "architectures.toml").open("rb") as file:
        names = [name for name in tomllib.load(file) if name != "families"]
    print(
        "| architecture | parameters, ours / published, M | 3D: M | GFLOP a step | s a step | steps | training s "
        "| traced MiB | Dice 3D | 2D: M | GFLOP a step | s a step | steps | training s | Dice 2D |"
    )
    print("| --- " * 15 + "|")
    for name in names:
        parts = {data: [row for row in rows if (row["dataset"], row["architecture"]) == (data, name)]
                 for data in (options.deep, options.flat)}  # fmt: skip
        published = PUBLISHED[name].count if name in PUBLISHED else None
        entry = next((row["entry"] for part in parts.values() for row in part), name)
        marks = " *" if "own recipe" in entry else ""
        cells = [f"`{name}`{marks}", f"{millions(ours(name) if name in PUBLISHED else None)} / {millions(published)}",
                 *half(parts[options.deep], options, memory=True),
                 *half(parts[options.flat], options, memory=False)]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
