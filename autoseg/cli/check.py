"""`autoseg check`: every problem of every case in one table, with the mend."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg.cli.options import Dataset, Debug, Json, WorkspaceFolder
from autoseg.cli.output import echo_json


def check(
    dataset: Dataset,
    fix_geometry: Annotated[
        bool, typer.Option("--fix-geometry", help="Resample label maps onto the grid of their image where they differ.")
    ] = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Find every problem of every case. Reads all voxels and never stops at the first.

    \b
    Example:
      autoseg check Dataset004_Hippocampus
    """
    from autoseg.raw import check as check_dataset
    from autoseg.raw.problems import printable
    from autoseg.workspace import Workspace

    report = check_dataset(dataset, Workspace.open(workspace), fix_geometry=fix_geometry)
    if json:
        fields = ("case", "file", "field", "value", "message", "mend", "severity")
        problems = [{name: printable(getattr(problem, name)) for name in fields} for problem in report.problems]
        echo_json({"ok": report.ok, "problems": problems})
    else:
        typer.echo(report.table())
    return 0 if report.ok else 2
