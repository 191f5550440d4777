"""How the learning rate falls over a run: shapes as functions of progress, so that they fit any length."""

from __future__ import annotations

import math
from typing import Literal, get_args

Annealing = Literal["polynomial", "cosine", "cosine_waves", "cosine_restarts"]
WAVES = 2.5  # falls, rises, falls, rises, and falls, in equal times
CYCLES = 7  # of warm restarts, each twice as long as the one before: 1 to 64 of 127 epochs


def annealed(shape: Annealing, progress: float, *, power: float, final: float) -> float:
    """Return the factor of the learning rate at `progress` in [0, 1], from 1 down to `final`.

    "polynomial": 1 - progress to the given power; "cosine": half a wave; "cosine_waves": two waves and a half, as a
    cosine does that goes on beyond its end; "cosine_restarts": half waves, each twice as long as the one before
    (Loshchilov and Hutter 2017, arXiv:1608.03983), the last of which ends with the run.
    """
    assert shape in get_args(Annealing)
    if shape == "polynomial":
        fallen = (1.0 - progress) ** power
    else:
        halves = _in_cycle(progress) if shape == "cosine_restarts" else progress
        halves *= 2 * WAVES if shape == "cosine_waves" else 1.0
        fallen = 0.5 + 0.5 * math.cos(math.pi * halves)
    return final + (1.0 - final) * fallen


def _in_cycle(progress: float) -> float:
    """Return the progress within the cycle: cycle n begins at 2**n - 1 of 2**CYCLES - 1 parts and has 2**n of them."""
    if progress >= 1.0:
        return 1.0
    part = progress * (2**CYCLES - 1)
    begun = 2 ** int(math.log2(part + 1.0)) - 1
    return (part - begun) / (begun + 1)
