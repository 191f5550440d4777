"""`autoseg evaluate`: score label maps against references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoseg.cli.options import Debug, Json, Workers
from autoseg.cli.output import echo_json, echo_table

if TYPE_CHECKING:
    from autoseg.evaluation import Evaluation

COLUMNS = {"Dice": "dice", "IoU": "iou", "HD95 (mm)": "hd95", "NSD": "nsd"}


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps.")],
    references: Annotated[Path, typer.Argument(metavar="REFERENCES", help="Folder of reference label maps.")],
    dataset_json: Annotated[
        Path | None,
        typer.Option(
            "--dataset-json",
            metavar="FILE",
            help="Names the labels. Default: dataset.json in or beside one of the folders.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Default: PREDICTIONS/summary.json, with a CSV beside.", show_default=False
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", metavar="MM", help="Of the surface Dice (NSD).")] = 1.0,
    surface: Annotated[
        bool, typer.Option("--surface/--no-surface", help="Surface distances: HD95 and NSD, the most of the time.")
    ] = True,
    workers: Workers = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score label maps against references. Per case and label: Dice, IoU, HD95, surface Dice, volumes.

    \b
    Example:
      autoseg evaluate segmentations labelsTs --dataset-json dataset.json
    """
    from autoseg.evaluation import EvaluationFailed
    from autoseg.evaluation import evaluate as score

    try:
        evaluation = score(
            predictions, references, dataset_json=dataset_json, output=output, tolerance=tolerance, surface=surface,
            workers=workers,
        )  # fmt: skip
    except EvaluationFailed as error:
        echo_scores(error.evaluation, json=json)
        raise
    echo_scores(evaluation, json=json)


def echo_scores(evaluation: Evaluation, *, json: bool) -> None:
    """Print the means over cases, per label."""
    if json:
        echo_json(evaluation.summary)
        return
    rows = [(name, *[scores.get(key) for key in COLUMNS.values()]) for name, scores in evaluation.mean.items()]
    rows.append(("mean", *[evaluation.foreground_mean.get(key) for key in COLUMNS.values()]))
    echo_table((f"{len(evaluation.cases)} case(s)", *COLUMNS), rows)
    typer.echo(f"scores: {evaluation.output}")
