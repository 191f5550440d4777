"""`autoseg find-best`: the best configuration or ensemble becomes the model folder."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg.cli.options import Dataset, Debug, Device, Json, Restart, Workers, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table


def find_best(
    dataset: Dataset,
    configurations: Annotated[
        list[str] | None,
        typer.Option("-c", "--configurations", metavar="CONFIG", help="Only these configurations.", show_default=False),
    ] = None,
    trainer: Annotated[
        str | None, typer.Option("--trainer", metavar="NAME", help="Only this trainer.", show_default=False)
    ] = None,
    plans: Annotated[
        str | None, typer.Option("--plans", metavar="NAME", help="Only these plans.", show_default=False)
    ] = None,
    ensembles: Annotated[
        bool, typer.Option("--ensembles/--no-ensembles", help="Also try pairs of configurations.")
    ] = True,
    device: Device = "auto",
    workers: Workers = None,
    restart: Restart = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Choose the best and write the model folder. What was trained is compared on held-out cases.

    \b
    Example:
      autoseg find-best Dataset004_Hippocampus
    """
    from autoseg.model_folder import read_model
    from autoseg.selection import find_best as select
    from autoseg.workspace import Workspace

    folder = select(
        dataset,
        Workspace.open(workspace),
        configurations=configurations or None,
        trainer=trainer,
        plans_name=plans,
        device=device,
        ensembles=ensembles,
        workers=workers,
        restart=restart,
    )
    model = read_model(folder, verify=False)
    if json:
        echo_json({"model": folder, "selection": model.selection})
        return
    members = " + ".join(member.name for member in model.members if member.in_ensemble)
    rows = [
        (entry["name"], entry["cases"], entry["foreground_dice"], *entry["class_dice"].values())
        for entry in model.selection["candidates"]
    ]
    echo_table(("candidate", "cases", "Dice", *model.labels.names), rows)
    typer.echo(f"chosen: {members}, with {len(model.postprocessing)} step(s) of post-processing")
    typer.echo(f"model: {folder}")
