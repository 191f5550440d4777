"""`autoseg pretrain`: train a method that needs no labels."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg.cli.options import (
    Configuration,
    Dataset,
    Debug,
    Deterministic,
    Device,
    Json,
    PlansName,
    Processes,
    Recipe,
    Restart,
    RunName,
    Seed,
    Settings,
    TimeBudget,
    Workers,
    WorkspaceFolder,
)
from autoseg.cli.train import echo_runs


def pretrain(
    dataset: Dataset,
    configuration: Configuration,
    trainer: Annotated[
        str, typer.Option("--trainer", metavar="NAME|FILE", help="Which method; `autoseg list trainers` shows them.")
    ] = "masked_autoencoder",
    plans: PlansName = "auto",
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME|FILE", help="Another network than planned.", show_default=False),
    ] = None,
    settings: Settings = None,
    recipe: Recipe = None,
    time_budget: TimeBudget = None,
    device: Device = "auto",
    seed: Seed = 0,
    processes: Processes = 1,
    deterministic: Deterministic = False,
    workers: Workers = None,
    restart: Restart = False,
    name: RunName = None,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a method that needs no labels. `train --pretrained` starts from the result.

    \b
    Example:
      autoseg pretrain Dataset004_Hippocampus 3d_fullres --time-budget 1h
    """
    from autoseg.cli.running import COMMAND_STARTED
    from autoseg.training import pretrain as pretrain_method
    from autoseg.training.settings import parse_assignments

    runs = pretrain_method(
        dataset,
        configuration,
        trainer=trainer,
        plans_name=plans,
        architecture=architecture,
        settings=parse_assignments(settings or []),
        recipe=recipe,
        time_budget=time_budget,
        device=device,
        seed=seed,
        processes=processes,
        deterministic=deterministic,
        workers=workers,
        restart=restart,
        name=name,
        workspace=workspace,
        started=COMMAND_STARTED.get(),
    )
    echo_runs(runs, json=json)
