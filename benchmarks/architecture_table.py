"""The table of all architectures from campaigns of the referee: parameters, operations, step time, memory and Dice.

    python benchmarks/architecture_table.py CAMPAIGN [CAMPAIGN ...] --deep DATASET --flat DATASET

CAMPAIGN is a folder that `autoseg benchmark` wrote, in the workspace that it ran in. Where several campaigns have runs
of one network with one recipe on one data set, those of the last one count. Parameters of the published configurations
are counted by `published_sizes.py`; parameters, operations, seconds of a step and steps are what the referee wrote of
the common recipe's runs, or of the own ones where there are no others. Memory is the traced estimate of a training step
at the 3D plan, single precision. Dice is the mean of the seeds, with their standard deviation where there are several.
The last line tells the shortest and the longest training.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path

from published_sizes import PUBLISHED, ours

from autoseg import plugins
from autoseg.planning.memory import trace_training
from autoseg.raw import open_dataset
from autoseg.storage import read_json
from autoseg.training.asked import configure, read_plans
from autoseg.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """One row of a campaign's table, and where the campaign is: WORKSPACE/benchmarks/NAME."""

    row: dict[str, str]
    campaign: Path

    @property
    def finished(self) -> bool:
        """Whether the run has its scores."""
        return self.row["status"] == "finished"

    @property
    def training(self) -> float:
        """Processor seconds of training over threads."""
        return float(self.row["train_cpu_seconds"]) / int(self.row["threads"])


def read(campaigns: list[Path]) -> dict[tuple[str, str, str], list[Run]]:
    """Return the runs of {(data set, architecture, recipe)}, those of later campaigns in place of earlier ones."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for campaign in campaigns:
        with (campaign / "results.csv").open() as file:
            runs = [Run(row, campaign.resolve()) for row in csv.DictReader(file) if row["kind"] == "run"]
        keys = {(run.row["dataset"], run.row["architecture"], run.row["recipe"]) for run in runs}
        found |= {key: [] for key in keys}
        for run in runs:
            found[run.row["dataset"], run.row["architecture"], run.row["recipe"]].append(run)
    return found


def millions(count: float | None) -> str:
    """Return a count in millions, "-" for none."""
    return "-" if count is None else f"{count / 1e6:.2f}"


def dice(runs: list[Run]) -> str:
    """Return mean and standard deviation of Dice over the finished seeds."""
    if not runs:
        return "-"
    scores = [float(run.row["dice"]) for run in runs if run.finished]
    if not scores:
        return "failed" if any(run.row["status"] == "failed" for run in runs) else "not run"
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}"


def traced(run: Run) -> str:
    """Return the estimate in MiB of the peak memory of a training step at the plan of a run."""
    row, workspace = run.row, Workspace.open(run.campaign.parents[1])
    record = read_json(run.campaign / "benchmark.json")
    name = record["plans"][f"{row['dataset']}/{row['architecture']}"]["plans_name"]
    dataset = open_dataset(record["datasets"][row["dataset"]]["reference"], workspace)
    planned = configure(
        read_plans(dataset, name, workspace), row["configuration"], row["architecture"],
        dataset=dataset, workspace=workspace,
    )  # fmt: skip
    kind = plugins.load("architecture", planned.architecture)
    estimate = trace_training(kind, planned.network, planned.batch_size, precision="fp32", optimizer="adamw")
    return f"{estimate.peak / MIB:.0f}"


def half(own: list[Run], common: list[Run], *, memory: bool) -> list[str]:
    """Return the cells of one data set."""
    runs = [run for run in common if run.finished] or [run for run in own if run.finished]
    if not runs:
        return ["-"] * (5 if memory else 4) + [dice(own), dice(common)]
    first = runs[0].row
    cells = [
        millions(float(first["parameters"])),
        f"{float(first['step_flops']) / 1e9:.1f}" if first["step_flops"] else "-",
        f"{statistics.mean(run.training / int(run.row['steps']) for run in runs):.2f}",
        f"{statistics.mean(int(run.row['steps']) for run in runs):.0f}",
    ]
    return [*cells, *([traced(runs[0])] if memory else []), dice(own), dice(common)]


def main(arguments: list[str] | None = None) -> None:
    """Print one Markdown row per network, in the order of docs/architectures.toml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", type=Path, nargs="+", metavar="CAMPAIGN")
    parser.add_argument("--deep", required=True, help="the name of the 3D data set")
    parser.add_argument("--flat", help="the name of the 2D data set")
    options = parser.parse_args(arguments)
    runs = read(options.campaigns)
    with (ROOT / "docs" / "architectures.toml").open("rb") as file:
        names = [name for name in tomllib.load(file) if name != "families"]
    print(
        "| architecture | parameters, ours / published, M | 3D: M | GFLOP a step | s a step | steps | traced MiB | own "
        "| common | 2D: M | GFLOP a step | s a step | steps | own | common |"
    )
    print("| --- " * 15 + "|")
    for name in names:
        sizes = PUBLISHED.get(name)
        cells = [f"`{name}`", f"{millions(ours(name) if sizes else None)} / {millions(sizes.count if sizes else None)}"]
        for data, memory in ((options.deep, True), (options.flat, False)):
            own, common = (runs.get((data, name, recipe), []) for recipe in ("own", "common"))
            cells += half(own, common, memory=memory)
        print("| " + " | ".join(cells) + " |", flush=True)
    took = [run.training for group in runs.values() for run in group if run.finished]
    if took:
        print(f"\n{len(took)} runs, {min(took):.1f} to {max(took):.1f} s of training each")


if __name__ == "__main__":
    main()
