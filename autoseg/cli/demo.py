"""`autoseg demo`: the whole pipeline on the bundled real data set."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg.cli.durations import format_duration, parse_duration
from autoseg.cli.options import Debug, Device, Json, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table


def demo(
    time_budget: Annotated[
        float,
        typer.Option("--time-budget", metavar="T", parser=parse_duration, help="For everything.", show_default="10m"),
    ] = 600.0,
    device: Device = "auto",
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline on bundled real data. These are 30 MRI of the hippocampus and 6 unseen ones.

    \b
    Example:
      autoseg demo --time-budget 10m
    """
    from autoseg.demo import run

    summary = run(workspace, time_budget=time_budget, device=device)
    if json:
        echo_json(summary.as_dict())
        return
    typer.echo("")
    rows = [(name, summary.cross_validation.get(name), summary.unseen.get(name)) for name in summary.unseen]
    echo_table(("Dice", "cross-validation", "unseen cases"), rows)
    for name, path in summary.paths.items():
        typer.echo(f"{name}: {path}")
    typer.echo(f"done in {format_duration(summary.seconds)}")
