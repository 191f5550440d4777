"""`autoseg benchmark`: the referee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoseg.cli.durations import parse_duration
from autoseg.cli.options import Debug, Deterministic, Devices, Json, Restart, Settings, Workers, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table

if TYPE_CHECKING:
    from autoseg.benchmarking.entry import Benchmark


def benchmark(
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET...", help="Folders, case lists, names or numbers in the workspace.")
    ],
    architectures: Annotated[
        list[str] | None,
        typer.Option(
            "--architectures", metavar="NAME|FILE", help="The networks; `all` takes every one.", show_default=False
        ),
    ] = None,
    trainers: Annotated[
        list[str] | None,
        typer.Option("--trainers", metavar="NAME|FILE", help="Default: supervised.", show_default=False),
    ] = None,
    recipes: Annotated[
        str,
        typer.Option(
            "--recipes", metavar="own|common|both", help="The optimiser settings of each method's authors, or the same."
        ),
    ] = "both",
    equal: Annotated[
        str, typer.Option("--equal", metavar="steps|time|flops", help="What every run gets equally much of.")
    ] = "steps",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="N|T", help="500 steps, 60s of training, or 2e15 operations.", show_default=False
        ),
    ] = None,
    folds: Annotated[str, typer.Option("--folds", metavar="FOLDS", help="0, 0,2, 0-4 or cv.")] = "0",
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Runs of everything, seeds 0 to N-1.")] = 3,
    configuration: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--configuration",
            metavar="CONFIG",
            help="Default: 3d_fullres, or 2d for 2D images.",
            show_default=False,
        ),
    ] = None,
    planner: Annotated[str, typer.Option("--planner", metavar="NAME|FILE", help="Plans for every network.")] = "auto",
    plans: Annotated[
        str | None,
        typer.Option(
            "--plans", metavar="NAME", help="Take these plans for all, instead of one per network.", show_default=False
        ),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", metavar="GiB", help="Plan for a GPU with this memory.", show_default=False),
    ] = None,
    plan_for: Annotated[
        float | None,
        typer.Option(
            "--plan-for",
            metavar="T",
            parser=parse_duration,
            show_default=False,
            help="Training time of a run to plan for. Default: the budget, where that is a time.",
        ),
    ] = None,
    settings: Settings = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, metavar="N", help="Runs at a time, each with its share of the cores.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Of the campaign. Default: made of the budget.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Default: WORKSPACE/benchmarks/NAME.", show_default=False),
    ] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep the weights of finished runs, not only scores and label maps.")
    ] = False,
    device: Devices = "auto",
    deterministic: Deterministic = False,
    workers: Workers = None,
    restart: Restart = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare networks and methods fairly. Same data, folds, augmentation and budget for all.

    \b
    Example:
      autoseg benchmark Dataset004_Hippocampus --architectures plain_unet primus --equal time --budget 10m
    """  # fmt: skip
    from autoseg.benchmarking import Question
    from autoseg.benchmarking import benchmark as compare
    from autoseg.benchmarking.budget import Budget
    from autoseg.training.settings import parse_assignments

    question = Question(
        datasets=tuple(datasets),
        architectures=tuple(architectures or ()),
        trainers=tuple(trainers or ("supervised",)),
        recipes=recipes,  # type: ignore[arg-type]
        budget=Budget.parse(equal, budget),
        folds=folds,
        seeds=seeds,
        configuration=configuration,
        planner=planner,
        plans=plans,
        gpu_memory=gpu_memory,
        plan_for=plan_for,
        settings=parse_assignments(settings or []),
        device=device,
    )
    done = compare(
        question,
        name=name,
        output=output,
        workspace=workspace,
        jobs=jobs,
        workers=workers,
        restart=restart,
        keep_weights=keep_weights,
        deterministic=deterministic,
    )
    echo_benchmark(done, json=json)
    for run, reason in done.failures.items():
        typer.echo(f"failed: {run}: {reason}", err=True)
    return 1 if done.failures else 0


def echo_benchmark(done: Benchmark, *, json: bool) -> None:
    """Print a table per data set."""
    import statistics

    record = done.record
    if json:
        echo_json({"folder": done.folder, **record})
        return
    for dataset in record["datasets"]:
        rows: list[tuple[Any, ...]] = []
        for key, entry in record["entries"].items():
            runs = [
                run for run in record["runs"].values()
                if run.get("dataset") == dataset and run.get("entry") == key and run.get("status") == "finished"
            ]  # fmt: skip
            dice = [run["means"]["dice"] for run in runs if run["means"].get("dice") is not None]
            if not runs:
                continue
            costs = record["costs"].get(f"{dataset}/{key}", {})
            rows.append((
                entry["name"], len(runs), statistics.mean(dice) if dice else None,
                statistics.stdev(dice) if len(dice) > 1 else None, runs[0]["steps"],
                round(runs[0]["parameters"] / 1e6, 2), costs.get("seconds"),
                round(statistics.mean(run["train_seconds"] for run in runs)),
                round(statistics.mean(run["inference_seconds"] for run in runs), 2),
                round((costs.get("peak_bytes") or 0) / 2**30, 2),
            ))  # fmt: skip
        rows.sort(key=lambda row: -(row[2] or 0))
        typer.echo(f"{dataset}:")
        echo_table(("method", "runs", "Dice", "sd", "steps", "million weights", "s/step", "training s", "s/case",
                    "GiB"), rows)  # fmt: skip
    typer.echo(f"benchmark: {done.folder}")
