"""Whether the answers of two children agree: losses of the first steps, random batches."""

from __future__ import annotations

from typing import Any

LOSS = 0.01  # largest relative difference of the losses of the first steps
ALIKE = (0.5, 2.0)  # share of foreground in random batches, autoseg / nnU-Net


def compare_losses(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compare the losses of the first steps from the same weights on the same batch."""
    pairs = list(zip(ours["losses"], theirs["losses"], strict=False))
    worst = max((abs(a - b) / max(abs(b), 0.1) for a, b in pairs), default=float("inf"))
    return {"losses": pairs, "relative_difference": worst, "agree": worst < LOSS}


def compare_batches(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Compare shapes, and the mean share of foreground of random batches, which can only be alike."""
    a, b = ours["statistics"][-1], theirs["statistics"][-1]
    alike = ALIKE[0] < (a + 1e-4) / (b + 1e-4) < ALIKE[1]
    both = [ours["statistics"], theirs["statistics"]]
    same = ours["shapes"] == theirs["shapes"]
    return {"shapes": ours["shapes"], "mean_std_foreground": both, "agree": same and alike}
