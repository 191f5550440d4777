"""Which optimiser recipe fits how many steps.

nnU-Net's SGD (momentum 0.99, learning rate 0.01) starts slowly: cut to some hundreds of steps it learns nothing.
AdamW with a short warm-up reaches a usable Dice within hundreds of steps, so short runs take it.
"""

from __future__ import annotations

from typing import Any

SHORT_RUN = 20_000  # steps below which the short recipe holds


def short_recipe(steps: int) -> dict[str, Any]:
    """Return the training settings for a run of so few steps that nnU-Net's schedule would not anneal in it."""
    return {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 1e-2,
        "warmup_steps": min(100, max(10, steps // 20)),
    }
