"""Rules for small time budgets: which network, patch and batch, so that enough steps fit.

A short run needs steps more than it needs width. From a ladder of settings, cheapest first, the dearest one is taken
that still leaves the wanted number of steps; where even the cheapest leaves too few, the patch shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoseg.plans import Precision, TrainingPlan
from autoseg.training.recipe import recipe_for

MOST_FOLDS = 5
TRAINING_SHARE = 0.9  # of a fold's time; the rest is start-up
VALIDATION_SHARE = 0.35  # of a fold's time at most: beyond, training spreads the tiles of validation further apart
FORWARD_SHARE = 0.3  # of a training step's time that prediction of as many patches takes
SECONDS_PER_VOXEL = 3e-7  # of resampling, deciding and scoring a predicted case
SMALLEST_PATCH = {2: 2**12, 3: 2**15}  # voxels, by dims; rather fewer steps than smaller patches
DEFAULT_BUDGET = 3600.0  # seconds for one configuration's cross-validation, on a machine without GPU


@dataclass(frozen=True)
class Rung:
    """One setting of the ladder."""

    base_features: int
    patch_voxels: int  # most voxels of one patch
    batch_size: int


LADDERS: dict[int, tuple[Rung, ...]] = {
    2: (Rung(8, 2**16, 4), Rung(16, 2**16, 4), Rung(16, 3 * 2**15, 8), Rung(32, 2**17, 8), Rung(32, 2**18, 12)),
    3: (Rung(8, 2**17, 2), Rung(16, 2**17, 2), Rung(16, 2**17, 4), Rung(32, 2**17, 2), Rung(32, 2**18, 2)),
}


def folds_of(cases: int) -> int:
    """Return how many folds a cross-validation of so many cases has."""
    return max(1, min(MOST_FOLDS, cases))


def validation_seconds(
    step_seconds: float,
    batch_size: int,
    patch_size: Sequence[int],
    median: Sequence[float],
    cases: int,
    *,
    mirrors: int,
) -> float:
    """Return the seconds of predicting the held-out cases of one fold, tiles half a patch apart."""
    sizes = median[-len(patch_size) :]
    edges = zip(sizes, patch_size, strict=True)
    tiles = math.prod(max(1, math.ceil(2 * (size - patch) / patch) + 1) for size, patch in edges)
    slices = math.prod(median[: -len(patch_size)])
    network = tiles * slices * mirrors * step_seconds / batch_size * FORWARD_SHARE
    return cases / folds_of(cases) * (network + SECONDS_PER_VOXEL * math.prod(median))


def training_seconds(time_budget: float, cases: int, validation: float = 0.0) -> float:
    """Return the seconds of pure training in one fold, with `validation` seconds for its held-out cases."""
    seconds = time_budget / folds_of(cases)
    return seconds * TRAINING_SHARE - min(validation, VALIDATION_SHARE * seconds)


def climb(
    ladder: Sequence[Rung],
    steps_of: Callable[[Rung], float | None],
    cost_of: Callable[[Rung], float],
    *,
    wanted_steps: int,
    fewest_steps: int,
    smallest_patch: int,
) -> Rung:
    """Return the dearest rung that leaves `wanted_steps`; from the cheapest, patches shrink if it must be.

    `steps_of` tells how many steps there is time for, None if the rung does not fit into memory; `cost_of` tells the
    relative cost of a step, so that rungs far out of reach are not timed.
    """
    best, best_steps = ladder[0], steps_of(ladder[0])
    if best_steps is not None:
        for rung in ladder[1:]:
            if best_steps * cost_of(best) / cost_of(rung) * 2 < wanted_steps:
                break
            steps = steps_of(rung)
            if steps is None or steps < wanted_steps:
                break
            best, best_steps = rung, steps
    while best.patch_voxels > smallest_patch and (best_steps is None or best_steps < fewest_steps):
        share = 0.5 if best_steps is None else max(0.25, min(0.8, best_steps / fewest_steps))
        best = Rung(best.base_features, max(smallest_patch, int(best.patch_voxels * share)), best.batch_size)
        best_steps = steps_of(best)
    return best


def short_training(steps: int, *, seconds_per_fold: float | None, precision: Precision) -> TrainingPlan:
    """Return the plan's recipe of a run without the time for nnU-Net's: `training.recipe` tells which and why."""
    return TrainingPlan(steps=steps, precision=precision, time_budget=seconds_per_fold, **recipe_for(steps))
