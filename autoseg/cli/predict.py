"""`autoseg predict`: segment a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.options import Debug, Device, Json, NetworkOptions, Restart, Workers, WorkspaceFolder
from autoseg.cli.output import echo_json
from autoseg.errors import UserError


def predict(
    inputs: Annotated[
        Path, typer.Option("-i", "--input", metavar="FOLDER", help="Folder of images, or one DICOM series.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the label maps go.")],
    model: Annotated[
        Path | None, typer.Option("-m", "--model", metavar="MODEL", help="A model folder.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "-d", "--dataset", metavar="DATASET", help="Use the model that find-best chose.", show_default=False
        ),
    ] = None,
    folds: Annotated[
        list[str] | None,
        typer.Option("--folds", metavar="FOLD", help="Only the networks of these folds.", show_default=False),
    ] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also write the probability of every class.")
    ] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also write an uncertainty map per case.")] = False,
    mirroring: Annotated[
        bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirrored images; without it is faster.")
    ] = True,
    step_size: Annotated[
        float, typer.Option("--step-size", min=0.1, max=1.0, help="Distance of neighbouring patches, in patches.")
    ] = 0.5,
    precision: Annotated[
        str, typer.Option("--precision", metavar="FORMAT", help="auto, fp32, bf16 or fp16: what networks compute in.")
    ] = "auto",
    tta_adapt: Annotated[
        str | None,
        typer.Option(
            "--tta-adapt",
            metavar="METHOD",
            help="entropy: let the norms of the network learn from each image first; up to ten times the time.",
            show_default=False,
        ),
    ] = None,
    tta_steps: Annotated[int, typer.Option("--tta-steps", min=0, help="Steps of --tta-adapt.")] = 3,
    tta_lr: Annotated[float, typer.Option("--tta-lr", min=0.0, help="Learning rate of --tta-adapt.")] = 0.01,
    tta_online: Annotated[
        bool, typer.Option("--tta-online", help="Keep what --tta-adapt learned for the next image.")
    ] = False,
    network_options: NetworkOptions = None,
    device: Device = "auto",
    workers: Workers = None,
    restart: Restart = False,
    trust_plugins: Annotated[
        bool, typer.Option("--trust-plugins", help="Run plug-in code that the model folder brings along.")
    ] = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Segment every image of a folder. Called again, it goes on with the unfinished cases.

    \b
    Example:
      autoseg predict -i images -o segmentations -d Dataset004_Hippocampus
    """
    from autoseg.cli.values import parse_values
    from autoseg.inference import Adaptation, Predictor
    from autoseg.workspace import Workspace

    if (model is None) == (dataset is None):
        raise UserError("give either a model folder or a data set", mend="use -m MODEL or -d DATASET")
    if tta_adapt not in (None, "entropy"):
        raise UserError(f"--tta-adapt can be entropy, got {tta_adapt!r}")
    if tta_adapt is None and (tta_steps, tta_lr, tta_online) != (3, 0.01, False):
        raise UserError("--tta-steps, --tta-lr and --tta-online go with an adaptation", mend="add --tta-adapt entropy")
    adaptation = Adaptation(tta_steps, tta_lr, tta_online) if tta_adapt else None
    predictor = Predictor.load(
        model if model is not None else Workspace.open(workspace).find_model(dataset),
        device=device,
        folds=[fold for text in folds for fold in text.split(",")] if folds else None,
        step_size=step_size,
        mirroring=mirroring,
        precision=precision,
        network_options=parse_values(network_options or []),
        adaptation=adaptation,
        trust_plugins=trust_plugins,
    )
    results = predictor.predict_folder(
        inputs,
        output,
        save_probabilities=save_probabilities,
        uncertainty=uncertainty,
        workers=workers or 1,
        restart=restart,
    )
    failed = [result for result in results if result.error]
    if json:
        echo_json([{"case": r.case, "output": r.output, "error": r.error, "skipped": r.skipped} for r in results])
    else:
        typer.echo(f"{len(results) - len(failed)} of {len(results)} case(s) segmented: {output}")
    return 1 if failed else 0
