"""`autoseg benchmark`: the referee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoseg.cli.durations import format_duration, parse_duration
from autoseg.cli.options import Debug, Devices, Json, Restart, Settings, Workers, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table
from autoseg.cli.running import command_that_goes_on
from autoseg.errors import Interrupted

if TYPE_CHECKING:
    from autoseg.benchmarking import Benchmark
    from autoseg.benchmarking.estimating import Estimate


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
        typer.Option(
            "--trainers",
            metavar="NAME|FILE",
            help="Default: supervised; own recipes take the one that a network needs.",
            show_default=False,
        ),
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipes",
            metavar="own|published|common|both",
            help="Optimiser and trainer: the authors' as suits short runs, as published, or the same for all; one or "
            "more. Default: both (own common).",
            show_default=False,
        ),
    ] = None,
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
    network_options: Annotated[
        list[str] | None,
        typer.Option(
            "--network-option",
            metavar="[NETWORK.]NAME=VALUE",
            help="An option of one network, such as primus.size=M, or of all that have it.",
            show_default=False,
        ),
    ] = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it will cost.")] = False,
    device: Devices = "auto",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="The same seed gives the same bits, at some cost of speed; equal time goes by steps timed before.",
        ),
    ] = False,
    workers: Workers = None,
    restart: Restart = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare networks and methods fairly. Same data, folds, augmentation and budget for all.

    \b
    Example:
      autoseg benchmark Dataset004_Hippocampus --architectures plain_unet primus --equal time --budget 10m --dry-run
    """  # fmt: skip
    from autoseg.benchmarking import Budget, Question
    from autoseg.benchmarking import benchmark as compare
    from autoseg.benchmarking import dry_run as estimate
    from autoseg.cli.values import parse_values
    from autoseg.training.settings import parse_assignments

    question = Question(
        datasets=tuple(datasets),
        architectures=tuple(architectures or ()),
        trainers=tuple(trainers or ()),
        recipes=tuple(recipes or ("both",)),
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
        network_options=parse_values(network_options or []),
    )
    place: dict[str, Any] = {"name": name, "output": output, "workspace": workspace}
    if dry_run:
        echo_estimate(estimate(question, **place, jobs=jobs, keep_weights=keep_weights), json=json)
        return 0
    try:
        done = compare(
            question,
            **place,
            jobs=jobs,
            workers=workers,
            restart=restart,
            keep_weights=keep_weights,
            deterministic=deterministic,
        )
    except Interrupted as error:
        raise Interrupted(f"{error}. To go on:\n  {command_that_goes_on()}") from None
    echo_benchmark(done, json=json)
    for run, reason in done.failures.items():
        typer.echo(f"failed: {run}: {reason}", err=True)
    return 1 if done.failures else 0


def echo_benchmark(done: Benchmark, *, json: bool) -> None:
    """Print the verdict and a table per data set."""
    from autoseg.benchmarking.tables import standing_rows
    from autoseg.benchmarking.words import verdict_sentences

    if json:
        echo_json({"folder": done.folder, **done.record.content})
        return
    names = {key: entry["name"] for key, entry in done.record["entries"].items()}
    for verdict in done.verdicts:
        typer.echo(f"{verdict.dataset}, {verdict.cases} cases")
        rows = standing_rows(done.record, verdict)
        echo_table(list(rows[0]), [list(row.values()) for row in rows])
        for sentence in (*verdict_sentences(verdict, names), *verdict.notes):
            typer.echo(sentence)
    typer.echo(f"page: {done.folder / 'index.html'}")


def echo_estimate(estimates: list[Estimate], *, json: bool) -> None:
    """Print what a campaign will cost."""
    from autoseg.benchmarking.estimating import as_dict
    from autoseg.benchmarking.foreseeing import ASSUMED

    whole = as_dict(estimates)
    jobs = whole["jobs"]
    if json:
        echo_json(whole)
        return
    rows = [
        (one.dataset, each.method, each.runs, each.finished, "measured" if each.steps is None else each.steps,
         format_duration(each.train_seconds), format_duration(each.seconds / jobs), each.rule)
        for one in estimates for each in one.methods
    ]  # fmt: skip
    echo_table(("data set", "method", "runs", "finished", "steps", "training a run", "time left", "times by"), rows)
    left, work = (format_duration(3600 * whole[name]) for name in ("hours", "processor_hours"))
    typer.echo(
        f"{whole['runs'] - whole['finished']} runs left, planning and timing of steps included about {left} with "
        f"{jobs} at a time, {work} of processor time with {whole['threads']} thread(s) each; nothing was run"
    )
    if any(row[4] == "measured" for row in rows):
        typer.echo("steps `measured`: known once a step is timed, at the start; then --dry-run tells them")
    if any(row[-1].startswith(ASSUMED) for row in rows):
        typer.echo(
            "times `assumed`: what plans leave for a step, or the operations of the network's smallest size where that "
            "is more; a rough guess. Known once steps are timed, at the start"
        )
    for warning in whole["warnings"]:
        typer.echo(warning)
    weights = "that of the weights of runs under way is known once they are planned"
    if whole["run_bytes"] is not None:
        weights = f"while runs are under way {megabytes(whole['run_bytes'])} more for weights and optimiser states"
    typer.echo(f"disk: at most about {megabytes(whole['disk_bytes'])} of label maps and data; {weights}")


def megabytes(count: float) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
