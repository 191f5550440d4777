"""Rules for small time budgets: which network, patch and batch, so that enough steps fit.

A short run needs steps more than it needs width. From a ladder of settings, cheapest first, the dearest one is taken
that still leaves the wanted number of steps; where even the cheapest leaves too few, the patch shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoseg.plans import Precision, TrainingPlan
from autoseg.training.recipe import short_recipe

MOST_FOLDS = 5
TRAINING_SHARE = 0.85  # of a fold's time; the rest is start-up and the prediction of its validation cases
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


def training_seconds(time_budget: float, cases: int) -> float:
    """Return the seconds of pure training in one fold."""
    return time_budget / folds_of(cases) * TRAINING_SHARE


def climb(
    ladder: Sequence[Rung],
    seconds: float,
    time_of: Callable[[Rung], float | None],
    cost_of: Callable[[Rung], float],
    *,
    wanted_steps: int,
    fewest_steps: int,
    smallest_patch: int,
) -> Rung:
    """Return the dearest rung that leaves `wanted_steps` in `seconds`; from the cheapest, patches shrink if it must be.

    `time_of` tells the seconds of one step, None if it does not fit into memory; `cost_of` tells its relative cost,
    so that rungs far out of reach are not timed.
    """
    best, best_time = ladder[0], time_of(ladder[0])
    if best_time is not None:
        for rung in ladder[1:]:
            if best_time * cost_of(rung) / cost_of(best) * wanted_steps > 2 * seconds:
                break
            taken = time_of(rung)
            if taken is None or taken * wanted_steps > seconds:
                break
            best, best_time = rung, taken
    while best.patch_voxels > smallest_patch and (best_time is None or best_time * fewest_steps > seconds):
        share = 0.5 if best_time is None else max(0.25, min(0.8, seconds / (best_time * fewest_steps)))
        best = Rung(best.base_features, max(smallest_patch, int(best.patch_voxels * share)), best.batch_size)
        best_time = time_of(best)
    return best


def short_training(steps: int, *, seconds_per_fold: float | None, precision: Precision) -> TrainingPlan:
    """Return the plan's recipe of a run without the time for nnU-Net's: `training.recipe` tells which and why."""
    return TrainingPlan(steps=steps, precision=precision, time_budget=seconds_per_fold, **short_recipe(steps))
