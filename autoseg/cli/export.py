"""`autoseg export`: a model folder becomes ONNX or OpenVINO with a runner that needs neither torch nor autoseg."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.options import Debug, Json
from autoseg.cli.output import echo_json


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The new folder.")] = Path(
        "exported"
    ),
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="onnx or openvino.")] = "onnx",
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="FOLD", help="Only these folds.", show_default=False)
    ] = None,
    trust_plugins: Annotated[
        bool, typer.Option("--trust-plugins", help="Run plug-in code that the model folder brings along.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model folder for use without torch. The networks, a JSON with every other step, and a runner.

    \b
    Example:
      autoseg export model --format onnx -o exported
    """
    from autoseg.interop import export as run

    folder = run(
        model,
        output,
        format=format,
        folds=[fold for text in folds for fold in text.split(",")] if folds else None,
        trust_plugins=trust_plugins,
    )
    if json:
        echo_json({"folder": folder, "files": sorted(path.name for path in folder.iterdir())})
    else:
        typer.echo(f"python {folder / 'run.py'} IMAGES OUTPUT")
