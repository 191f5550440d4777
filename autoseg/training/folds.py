"""Folds as a user writes them: 0 | 0,2 | 0-4 | cv | all."""

from __future__ import annotations

import re

from autoseg.errors import UserError


def parse_folds(text: str | int, available: int) -> list[str]:
    """Return fold names for a user's text; `available` is the number of folds of the split.

    A number beyond the split is allowed: it means a random 80:20 split of its own, as in nnU-Net.
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
        raise UserError("this data set has one case and no folds", mend="train on fold all")
    return [str(fold) for fold in dict.fromkeys(folds)]
