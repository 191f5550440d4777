"""A network that training has broken: told as that, where a prediction would blame the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoseg.errors import UserError
from autoseg.training.health import TrainingFailed
from autoseg.training.trainer import Trainer

NOT_FINITE = "the network's output is not finite"  # the words of `inference.sliding_window`


@contextmanager
def told_as_divergence(trainer: Trainer, what: str, image: torch.Tensor, step: int) -> Iterator[None]:
    """Raise TrainingFailed where the output for an image of finite values is not finite after `step` steps."""
    try:
        yield
    except UserError as error:
        if error.what != NOT_FINITE or not bool(torch.isfinite(image).all()):
            raise
        raise TrainingFailed(
            f"fold {trainer.context.fold} diverged: {NOT_FINITE} for {what} after step {step} (learning rate "
            f"{trainer.learning_rate:.2g}, precision {trainer.precision}), while all values of the image are finite.\n"
            "To mend it: train anew with a lower --set learning_rate and --restart."
        ) from error
