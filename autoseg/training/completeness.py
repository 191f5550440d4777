"""Whether a run is complete: trained, its weights and plans as they were written, and validated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.training.checkpoint import STATE_FILE, WEIGHTS_FILE
from autoseg.training.log import check_weights, read_run
from autoseg.training.repeating import mend_by_training
from autoseg.training.run import PLANS_FILE, is_finished
from autoseg.training.validation import is_validated

logger = logging.getLogger("autoseg.training")


def is_complete(folder: Path) -> bool:
    """Return whether nothing is left to do for the run in `folder`; says what of a finished one is damaged.

    Raises: UserError where that cannot be mended without training anew, which nobody asked for.
    """
    if not is_finished(folder):
        return False
    damage = list(_damage(folder))
    for error in damage:
        logger.warning("%s: %s; the run goes on from its checkpoint, which writes it anew", error.where, error.what)
    if is_validated(folder) and not damage:
        return True
    if not (folder / STATE_FILE).is_file():  # the run would begin at its first step
        raise UserError(
            "the checkpoint is missing, without which the finished run cannot be mended",
            where=folder / STATE_FILE,
            mend=mend_by_training(folder, read_run(folder), restart=True),
        )
    return False


def _damage(folder: Path) -> Iterator[UserError]:
    """Yield what is wrong with the weights and the plans of a finished run."""
    try:
        check_weights(folder / WEIGHTS_FILE, read_run(folder))
    except UserError as error:
        yield error
    try:
        Plans.read(folder / PLANS_FILE, editable=False)
    except UserError as error:
        yield error
