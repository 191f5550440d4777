"""The final validation: whole cases of the fold, predicted as for new images, on the grid of the original image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from autoseg.errors import CaseError, UserError
from autoseg.evaluation import evaluate_case, summarize, write_summary
from autoseg.inference import Request, predict_label_map
from autoseg.raw import read_label, write_label
from autoseg.storage import file_hash, read_json
from autoseg.training.checkpoint import unwrapped
from autoseg.training.context import RunContext
from autoseg.training.divergence import told_as_divergence
from autoseg.training.health import TrainingFailed
from autoseg.training.log import read_run
from autoseg.training.trainer import Trainer
from autoseg.watching import watched

FOLDER = "validation"
SUMMARY = "summary.json"

log = logging.getLogger(__name__)


def validate(trainer: Trainer, device: torch.device, *, step_size: float = 0.5, step: int = 0) -> dict[str, Any]:
    """Predict, write and score every validation case that has a label; returns the summary and writes it.

    `step` is how many steps were made. Raises TrainingFailed where the network's output is finite for no case.
    """
    context = trainer.context
    network = unwrapped(trainer.inference_module())
    cases = labelled_cases(context)
    scores: dict[str, Any] = {}
    written: dict[str, str] = {}
    failures = []
    divergence: TrainingFailed | None = None
    for case in tqdm(cases, desc=f"fold {context.fold}: validation", unit="case", leave=False, disable=None):
        try:
            with watched(f"validation, case {case}"):
                scores[case] = _validate_case(case, trainer, network, device, step_size, step)
            file = validated_file(context.folder, case, context.dataset.file_ending)
            written[file.name] = file_hash(file)
        except UserError as error:
            failures.append(CaseError(case, "validation", str(error)))
        except TrainingFailed as error:  # reduced precision may overflow for one case alone
            failures.append(CaseError(case, "validation", str(error)))
            divergence = divergence or error
    if divergence is not None and not scores:
        raise divergence
    summary = summarize(scores) | {"label_maps": written}
    if failures:
        summary["failed"] = {failure.case: failure.reason for failure in failures}
    write_summary(summary, context.folder / FOLDER / SUMMARY)
    return summary


def damaged_label_maps(run_folder: Path, summary: dict[str, Any]) -> list[Path]:
    """Return the validated label maps that are missing or not as they were written; earlier versions noted none."""
    folder = run_folder / FOLDER
    noted = summary.get("label_maps", {}).items()
    return [folder / name for name, digest in noted if not _is_intact(folder / name, digest)]


def is_validated(run_folder: Path) -> bool:
    """Return whether the scores and label maps of a finished run are as they were written; says what is not."""
    name = read_run(run_folder).get("validation_summary")
    if name is None:
        return True  # there was nothing to validate
    try:
        damaged = damaged_label_maps(run_folder, read_json(run_folder / name))
    except UserError as error:
        log.warning("%s; the fold is validated again", error)
        return False
    if damaged:
        log.warning("the fold is validated again: %s is missing or damaged", ", ".join(map(str, damaged)))
    return not damaged


def _is_intact(file: Path, digest: str) -> bool:
    return file.is_file() and file_hash(file) == digest


def labelled_cases(context: RunContext) -> list[str]:
    """Return the validation cases that have a label map."""
    return [case for case in context.validation_cases if context.case(case).label is not None]


def _validate_case(
    case: str, trainer: Trainer, network: nn.Module, device: torch.device, step_size: float, step: int
) -> dict[str, Any]:
    context = trainer.context
    predicted = _label_map(case, trainer, network, device, step_size, step)
    _, geometry = read_label(context.case(case).label)
    write_label(validated_file(context.folder, case, context.dataset.file_ending),
                context.dataset.labels.to_raw(predicted), geometry)  # fmt: skip
    return score(case, predicted, context)


def _label_map(
    case: str, trainer: Trainer, network: nn.Module, device: torch.device, step_size: float, step: int
) -> np.ndarray:
    """Return the predicted internal label map (Z, Y, X) on the original grid."""
    context = trainer.context
    stored = context.store.read(case)
    previous = None if context.previous_stage is None else stored.previous_stage(name=context.previous_stage)
    image = torch.from_numpy(stored.image())
    with told_as_divergence(trainer, f"case {case}", image, step):
        request = Request(
            [network], image, context.configuration, trainer.mirror_axes(), device, step_size, trainer.precision,
            previous, regions=trainer.labels.regions,
        )  # fmt: skip
        return predict_label_map(request, context.plans, stored.properties, trainer.labels)


def score(case: str, predicted: np.ndarray, context: RunContext) -> dict[str, Any]:
    """Return the scores of a predicted internal label map (Z, Y, X) on the original grid, per label and region."""
    raw = context.case(case)
    label, geometry = read_label(raw.label)
    labels = context.dataset.labels
    reference = labels.to_internal(label, str(raw.label))
    scores = evaluate_case(predicted, reference, labels=labels, spacing=geometry.spacing, annotated=raw.annotated)
    return {name: score.as_dict() for name, score in scores.items()}


def validated_file(run_folder: Path, case: str, file_ending: str) -> Path:
    """Return where the label map of a validated case lies."""
    return run_folder / FOLDER / f"{case}{file_ending}"


def mean_dice(summary: dict[str, Any]) -> float | None:
    """Return the foreground mean Dice of a summary."""
    return summary["foreground_mean"].get("dice")
