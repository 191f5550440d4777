"""`autoseg train`: train folds of one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from autoseg.cli.options import (
    Configuration,
    Dataset,
    Debug,
    Deterministic,
    Devices,
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
from autoseg.cli.output import echo_json, echo_table
from autoseg.errors import CaseError, CasesFailed


def train(
    dataset: Dataset,
    configuration: Configuration,
    folds: Annotated[
        str, typer.Argument(metavar="FOLDS", help="0, 0,2, 0-4, cv (every fold) or all (one run on every case).")
    ] = "cv",
    trainer: Annotated[
        str, typer.Option("--trainer", metavar="NAME|FILE", help="Which method; `autoseg list trainers` shows them.")
    ] = "supervised",
    plans: PlansName = "auto",
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME|FILE", help="Another network than planned.", show_default=False),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option("--pretrained", metavar="MODEL", help="Start from this run or weights file.", show_default=False),
    ] = None,
    settings: Settings = None,
    recipe: Recipe = None,
    labelled: Annotated[
        int | None,
        typer.Option(
            "--labelled",
            min=1,
            metavar="N",
            help="Only N training cases, chosen by seed, keep their labels.",
            show_default=False,
        ),
    ] = None,
    time_budget: TimeBudget = None,
    device: Devices = "auto",
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
    """Train folds of a configuration. A run that was stopped goes on where it was.

    \b
    Example:
      autoseg train Dataset004_Hippocampus 3d_fullres cv --time-budget 1h --set mirror=false
    """
    from autoseg.cli.running import COMMAND_STARTED
    from autoseg.training import train as train_folds
    from autoseg.training.settings import parse_assignments

    runs = train_folds(
        dataset,
        configuration,
        folds,
        trainer=trainer,
        plans_name=plans,
        architecture=architecture,
        pretrained=pretrained,
        settings=parse_assignments(settings or []),
        recipe=recipe,
        labelled=labelled,
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


def echo_runs(runs: list[Path], *, json: bool) -> None:
    """Print what became of runs, by their run.json; raises CasesFailed if validation cases failed."""
    from autoseg.storage import read_json

    records = [{"folder": run, **read_json(run / "run.json")} for run in runs]
    if json:
        echo_json(records)
    else:
        _echo_rows(records)
    failures = [failure for record in records for failure in _failures(record)]
    if failures:
        raise CasesFailed(failures)


def _failures(record: Mapping[str, Any]) -> list[CaseError]:
    """Return the validation cases of a run that could not be predicted or scored."""
    from autoseg.storage import read_json

    if not (record.get("validation") or {}).get("failed"):
        return []
    failed = read_json(record["folder"] / record["validation_summary"]).get("failed", {})
    stage = f"validation of fold {record.get('fold')}"
    return [CaseError(case, stage, reason) for case, reason in sorted(failed.items())]


def _echo_rows(records: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            record.get("fold"),
            record.get("status"),
            record.get("steps_done"),
            round(record.get("seconds") or 0),
            (record.get("validation") or {}).get("foreground_dice"),
            record["folder"],
        )
        for record in records
    ]
    echo_table(("fold", "status", "steps", "seconds", "Dice", "folder"), rows)
