"""Budgets: folds, the ladder, the recipe."""

import pytest

from autoseg.planning.budget import LADDERS, Rung, climb, folds_of, short_training, training_seconds, validation_seconds

LADDER = (Rung(8, 1000, 2), Rung(16, 1000, 2), Rung(32, 1000, 2), Rung(32, 4000, 2))


def cost_of(rung):
    return rung.base_features * rung.patch_voxels * rung.batch_size


def reached(seconds, *, unit=1e-6, limit=None):
    """Climb with a step time proportional to the cost; returns the rung and the rungs that were timed."""
    timed = []

    def steps_of(rung):
        timed.append(rung)
        return None if limit and cost_of(rung) > limit else seconds / (unit * cost_of(rung))

    rung = climb(LADDER, steps_of, cost_of, wanted_steps=1000, fewest_steps=500, smallest_patch=100)
    return rung, timed


def test_the_dearest_affordable_rung_is_taken():
    assert reached(1000)[0] == LADDER[3]
    assert reached(255)[0] == LADDER[2]  # the next takes 0.256 s for each of 1000 steps
    assert reached(33)[0] == LADDER[1]


def test_rungs_out_of_reach_are_not_timed():
    rung, timed = reached(16)
    assert rung == LADDER[0]
    assert timed == [LADDER[0], LADDER[1]]


def test_fewer_steps_before_smaller_patches_and_not_below_the_smallest():
    assert reached(8)[0] == LADDER[0]  # 500 steps of 0.016 s
    rung, _ = reached(4)
    assert rung.patch_voxels == 500
    assert reached(0.001)[0].patch_voxels == 100


def test_memory_ends_the_climb():
    assert reached(1000, limit=cost_of(LADDER[1]))[0] == LADDER[1]
    assert reached(1000, limit=cost_of(LADDER[0]) / 3)[0].patch_voxels == 250


def test_folds_share_the_time():
    assert [folds_of(cases) for cases in (1, 3, 5, 200)] == [1, 3, 5, 5]
    assert training_seconds(1200, 200) == pytest.approx(216)
    assert training_seconds(1200, 200, validation=16) == pytest.approx(200)
    assert training_seconds(1200, 200, validation=1000) == pytest.approx(216 - 0.35 * 240)


def test_validation_is_reckoned_in_tiles():
    """64 cubed in patches of 32: 3 tiles per axis, 27 in all; a step of 2 patches in 1 s, so 0.15 s per tile."""
    seconds = validation_seconds(1.0, 2, (32, 32, 32), (64, 64, 64), 10, mirrors=1)
    assert seconds == pytest.approx(2 * (27 * 0.15 + 3e-7 * 64**3))
    mirrored = validation_seconds(1.0, 2, (32, 32), (5, 64, 32), 10, mirrors=4)
    assert mirrored == pytest.approx(2 * (5 * 3 * 4 * 0.15 + 3e-7 * 5 * 64 * 32))


@pytest.mark.parametrize("dims", [2, 3])
def test_ladders_rise(dims):
    work = [rung.base_features**2 * rung.patch_voxels * rung.batch_size for rung in LADDERS[dims]]
    assert work == sorted(work)
    assert len(set(work)) == len(work)


def test_short_runs_see_nothing_mirrored():
    short, long, full = (short_training(n, seconds_per_fold=60, precision="fp32") for n in (500, 10_000, 50_000))
    assert (short.steps, short.optimizer, short.learning_rate, short.warmup_steps) == (500, "adamw", 6e-3, 25)
    assert (short.augmentation, short.mirror, short.time_budget) == ("light", False, 60)
    assert (full.optimizer, full.learning_rate, full.warmup_steps, full.weight_decay) == ("sgd", 0.01, 0, 3e-5)
    assert (long.augmentation, long.mirror, long.warmup_steps, long.learning_rate) == ("full", True, 100, 3e-3)
