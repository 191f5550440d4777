"""Folds as a user writes them: 0 | 0,2 | 0-4 | cv | all."""

from __future__ import annotations

import logging
import re

from autoseg.errors import UserError

logger = logging.getLogger(__name__)


def parse_folds(text: str | int, available: int) -> list[str]:
    """Return fold names for a user's text; `available` is the number of folds of the split.

    A number beyond the split is allowed, with a warning: it means a random 80:20 split of its own, as in nnU-Net.
    """
    text = str(text).strip().lower()
    if text == "all":
        return ["all"]
    if text == "cv":
        return [str(fold) for fold in range(available)] or ["all"]
    folds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise UserError(f"folds {text!r} are not understood", mend="use 0, or 0,2, or 0-4, or cv, or all")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"folds {part.strip()!r} end before they begin", mend=f"use {last}-{first}")
        folds += range(first, last + 1)
    if available == 0:
        raise UserError(
            f"fold {text}: this data set has one case, or one group of cases, and no folds", mend="train on fold all"
        )
    if beyond := sorted({fold for fold in folds if fold >= available}):
        logger.warning(
            "fold %s: this data set has %d fold(s), 0 to %d, since it has few cases or groups, or its own split; each "
            "fold beyond is a random 80:20 split of its own. To mend it: train on cv, which is every fold there is",
            ", ".join(map(str, beyond)),
            available,
            available - 1,
        )
    return [str(fold) for fold in dict.fromkeys(folds)]
