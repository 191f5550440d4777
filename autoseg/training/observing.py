"""Whole validation cases predicted during training: a real Dice early, at a bounded share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from autoseg.evaluation.overlap import counts_from_histogram, histogram_size, joint_histogram
from autoseg.evaluation.summary import mean_of_defined
from autoseg.inference import Request, Rows, predict_rows
from autoseg.labels import Labels
from autoseg.training.checkpoint import Progress, unwrapped
from autoseg.training.clock import Clock
from autoseg.training.divergence import NOT_FINITE, told_as_divergence
from autoseg.training.health import TrainingFailed
from autoseg.training.log import RunLog
from autoseg.training.trainer import Trainer
from autoseg.watching import watched

LARGEST_SHARE = 0.04  # of the training time that observing may take
SMALLEST_STEP = 0.05  # of progress between two observations


class Observer:
    """Predicts a few fixed validation cases from time to time, without mirrors, on the preprocessed grid.

    It reads weights only, so it never changes what is trained.
    """

    def __init__(self, trainer: Trainer, device: torch.device, *, cases: int, step_size: float = 0.5):
        labelled = [c for c in trainer.context.validation_cases if trainer.context.store.read(c).labelled]
        self.cases, self.step_size = labelled[:cases], step_size
        self.trainer, self.device = trainer, device
        self._seconds = 0.0  # what the last observation took
        self._next_elapsed = 0.0

    def due(self, state: Progress, clock: Clock) -> bool:
        """Return whether enough progress and time went by since the last observation."""
        progress = clock.progress(state.step)
        enough = progress - state.last_validation >= SMALLEST_STEP and clock.elapsed >= self._next_elapsed
        return bool(self.cases) and enough

    def observe(self, state: Progress, clock: Clock, log: RunLog) -> None:
        """Predict the cases, log their Dice, update the moving average 0.9 old + 0.1 new.

        Output that is not finite is told and has no Dice: a batch norm's running statistics may lag behind weights that
        learn. What is still so after the last step fails in the validation.
        """
        started = time.monotonic()
        scores: dict[str, dict[str, float | None]] = {}
        foreground = 0
        for case in self.cases:
            try:
                with watched(f"observed case {case}"):
                    scores[case], predicted = self._score(case, state.step)
                foreground += predicted
            except TrainingFailed:
                scores[case] = {}
        self._tell_not_finite([case for case, found in scores.items() if not found], state.step, log)
        values = np.array([v for score in scores.values() for v in score.values() if v is not None], dtype=float)
        mean = mean_of_defined(values) if values.size and all(scores.values()) else None  # of all cases, or of none
        if mean is not None:
            state.ema_dice = mean if state.ema_dice is None else 0.9 * state.ema_dice + 0.1 * mean
        state.blind_validations = 0 if foreground else state.blind_validations + 1
        state.last_validation = clock.progress(state.step)
        self._seconds = time.monotonic() - started
        self._next_elapsed = clock.elapsed + self._seconds / LARGEST_SHARE
        log.event(
            "validation", step=state.step, progress=round(state.last_validation, 6), case_dice=scores,
            mean_dice=mean, ema_dice=state.ema_dice, seconds=round(self._seconds, 3),
        )  # fmt: skip

    def _tell_not_finite(self, cases: list[str], step: int, log: RunLog) -> None:
        if cases:
            log.note(
                f"fold {self.trainer.context.fold}: {NOT_FINITE} for {len(cases)} of {len(self.cases)} observed cases "
                f"after step {step} ({', '.join(cases)}), while the loss is. Training goes on; where its validation "
                "fails likewise, train anew with a lower --set learning_rate and --restart."
            )

    def _score(self, case: str, step: int) -> tuple[dict[str, float | None], int]:
        context, labels = self.trainer.context, self.trainer.labels
        stored = context.store.read(case)
        previous = None if context.previous_stage is None else stored.previous_stage(name=context.previous_stage)
        network = unwrapped(self.trainer.inference_module())
        image = torch.from_numpy(stored.image())
        with told_as_divergence(self.trainer, f"case {case}", image, step):
            request = Request(
                [network], image, context.configuration, device=self.device, step_size=self.step_size,
                precision=self.trainer.precision, previous_label=previous,
            )  # fmt: skip
            predicted = predict_rows(request, lambda parts: decide_rows(parts, labels))
        reference = stored.label().clip(min=0)
        histogram = joint_histogram(predicted, reference, size=histogram_size(labels))
        dice = {name: counts.dice for name, counts in counts_from_histogram(histogram, labels).items()}
        return dice, int(np.count_nonzero(predicted))


def decide_rows(parts: Iterator[Rows], labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) of logits that come as rows along the first axis, on their own grid."""
    return np.concatenate([decide(part.means[0][:, part.fresh - part.first :].cpu(), labels) for part in parts])


def decide(logits: torch.Tensor, labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) of logits (K, Z, Y, X) on their own grid."""
    if labels.regions:
        return labels.paint((logits > 0).numpy())
    return logits.argmax(0).to(torch.int16).numpy()
