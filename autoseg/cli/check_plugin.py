"""`autoseg check-plugin`: conformance tests on a plug-in file."""

from __future__ import annotations

from typing import Annotated

import typer

from autoseg.cli.options import Debug, Json, WorkspaceFolder
from autoseg.cli.output import echo_json


def check_plugin(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A plug-in file, FILE.py:NAME, or the name of a plug-in.")
    ],
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Check that a plug-in keeps its contract.

    \b
    Example:
      autoseg check-plugin plain_unet
    """
    from autoseg.conformance import check_plugin as findings_of
    from autoseg.conformance import find_plugins
    from autoseg.workspace import Workspace

    root = Workspace.open(workspace).root
    findings = []
    for found in find_plugins(file, root):
        for finding in findings_of(found, root):
            findings.append(finding)
            if not json:
                typer.echo(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.plugin}: {finding.check}")
                if finding.message:
                    typer.echo(f"        {finding.message}")
    failed = sum(not finding.ok for finding in findings)
    if json:
        echo_json([vars(finding) for finding in findings])
    else:
        typer.echo(f"{len(findings) - failed} of {len(findings)} checks passed")
    return 2 if failed else 0
