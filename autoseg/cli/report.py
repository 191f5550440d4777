"""`autoseg report`: one self-contained HTML file."""

from __future__ import annotations

import typer

from autoseg.cli.options import Dataset, Debug, Json, WorkspaceFolder
from autoseg.cli.output import echo_json


def report(
    dataset: Dataset,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one HTML file about a data set. It holds plans, curves, scores and pictures.

    \b
    Example:
      autoseg report Dataset004_Hippocampus
    """
    from autoseg.reporting import report as write_report
    from autoseg.workspace import Workspace

    file = write_report(dataset, Workspace.open(workspace))
    if json:
        echo_json({"report": file})
    else:
        typer.echo(f"report: {file}")
