"""`autoseg export-nnunet`: a model folder becomes results that nnunetv2 predicts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.options import Debug, Json
from autoseg.cli.output import echo_json


def export_nnunet(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder of U-Nets.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="The new folder; it can be nnUNet_results.")
    ] = Path("nnUNet_results"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model folder as results of nnU-Net v2. Then nnUNetv2_predict_from_modelfolder predicts the same.

    \b
    Example:
      autoseg export-nnunet model -o nnUNet_results
    """
    from autoseg.interop import export_nnunet as run

    folders = run(model, output)
    if json:
        echo_json({"folders": folders})
        return
    for folder in folders:
        typer.echo(f"nnUNetv2_predict_from_modelfolder -m {folder} -i IMAGES -o OUTPUT")
