"""`autoseg import-nnunet`: a trained model of nnU-Net v2 becomes a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.options import Debug, Json
from autoseg.cli.output import echo_json, echo_table


def import_nnunet(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Results folder of nnU-Net v2, or an exported zip file.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL", help="The new model folder.")] = Path(
        "model"
    ),
    configurations: Annotated[
        list[str] | None,
        typer.Option(
            "-c", "--configurations", metavar="CONFIG", help="Which ones, to be averaged.", show_default=False
        ),
    ] = None,
    folds: Annotated[
        list[str] | None, typer.Option("--folds", metavar="FOLD", help="Only these folds.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="FILE", help="Name of the checkpoints.")
    ] = "checkpoint_final.pth",
    postprocessing: Annotated[
        bool, typer.Option("--postprocessing", help="Take over the post-processing that nnU-Net chose.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model folder of what nnU-Net trained. No code in its checkpoints is run.

    \b
    Example:
      autoseg import-nnunet nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres -o model
    """
    from autoseg.interop import import_nnunet as run
    from autoseg.model_folder import read_model

    folder = run(
        source,
        output,
        folds=[fold for text in folds for fold in text.split(",")] if folds else None,
        configurations=configurations or None,
        checkpoint=checkpoint,
        postprocessing=postprocessing,
    )
    model = read_model(folder, verify=False)
    if json:
        echo_json({"model": folder, "members": {member.name: sorted(member.folds) for member in model.members}})
        return
    rows = [
        (member.name, member.architecture, member.trainer, " ".join(member.folds), member.previous_stage)
        for member in model.members
    ]
    echo_table(("configuration", "architecture", "trainer", "folds", "previous stage"), rows)
    typer.echo(f"model: {folder}")
