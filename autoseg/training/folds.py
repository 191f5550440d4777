"""Folds as a user writes them: 0 | 0,2 | 0-4 | cv | all."""

from __future__ import annotations

import logging
import re

from autoseg.errors import UserError

HIGHEST = 9999  # a fold beyond the split is one more random split; nobody trains so many
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
    folds: dict[int, None] = {}  # in the order given, each once
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise UserError(f"folds {text!r} are not understood", mend="use 0, or 0,2, or 0-4, or cv, or all")
        first, last = (_number(digits, text, available) for digits in (match[1], match[2] or match[1]))
        if last < first:
            raise UserError(f"folds {part.strip()!r} end before they begin", mend=f"use {last}-{first}")
        folds |= dict.fromkeys(range(first, last + 1))
    if available == 0:
        raise UserError(
            f"fold {text}: this data set has one case, or one group of cases, and no folds", mend="train on fold all"
        )
    if beyond := sorted(fold for fold in folds if fold >= available):
        logger.warning(
            "fold %s: this data set has %d fold(s), 0 to %d, since it has few cases or groups, or its own split; each "
            "fold beyond is a random 80:20 split of its own. To mend it: train on cv, which is every fold there is",
            ", ".join(map(str, beyond)),
            available,
            available - 1,
        )
    return [str(fold) for fold in folds]


def _number(digits: str, text: str, available: int) -> int:
    """Return the number of a fold; one beyond all bounds is a UserError before a range up to it is built."""
    highest = max(HIGHEST, available - 1)
    number = digits.lstrip("0") or "0"
    if len(number) > len(str(highest)) or int(number) > highest:  # Python reads no number of thousands of digits
        raise UserError(
            f"folds {_shortened(text)!r}: there is no fold {_shortened(number)}, their numbers are 0 to {highest}",
            mend="use 0, or 0,2, or 0-4, or cv, which is every fold of the split",
        )
    return int(number)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
