import numpy as np
import pytest

from autoseg.batches import StreamSettings
from autoseg.batches.sampler import choose_place, corner_bounds, is_forced
from autoseg.errors import UserError


@pytest.mark.parametrize(("batch", "forced"), [(2, [1]), (9, [6, 7, 8]), (1, []), (4, [3]), (12, [8, 9, 10, 11])])
def test_the_last_third_is_forced(batch, forced):
    settings = StreamSettings((8, 8, 8), batch)
    assert [sample for sample in range(batch) if is_forced(sample, settings)] == forced


def test_corner_bounds_by_hand():
    # large axis: padding 5 -> lowest -3, highest 100 + 2 + 1 - 15; small axis 6: padding 15 - 6 = 9
    assert corner_bounds((100, 6), initial=(15, 15), final=(10, 10)) == ((-3, -5), (88, -4))
    assert corner_bounds((10,), initial=(10,), final=(10,)) == ((0,), (0,))
    assert corner_bounds((7,), initial=(10,), final=(10,)) == ((-2,), (-1,))


def test_free_corners_fill_the_bounds():
    settings = StreamSettings((10, 10, 10), 1, augmentation="none")
    places = [
        choose_place((12, 10, 7), {}, settings, forced=False, ignore=False, generator=np.random.default_rng(i))
        for i in range(200)
    ]
    assert {place.corner[0] for place in places} == {0, 1, 2}
    assert {place.corner[1] for place in places} == {0}
    assert {place.corner[2] for place in places} == {-2, -1}


def test_forced_patches_are_centred_and_clamped_from_below_only():
    settings = StreamSettings((10, 10, 10), 1, augmentation="none")

    def corner(voxel):
        locations = {1: np.array([voxel], dtype=np.int32)}
        return choose_place(
            (30, 30, 30), locations, settings, forced=True, ignore=False, generator=np.random.default_rng(0)
        ).corner

    assert corner((15, 16, 17)) == (10, 11, 12)
    assert corner((2, 15, 29)) == (0, 10, 24)  # beyond the upper border it is padded


def test_forced_classes_are_equally_likely_and_annotated_voxels_are_left_out():
    settings = StreamSettings((4, 4, 4), 1, augmentation="none")
    locations = {
        1: np.full((5000, 3), 5, dtype=np.int32),
        2: np.full((1, 3), 20, dtype=np.int32),
        3: np.empty((0, 3), dtype=np.int32),
        -1: np.full((9, 3), 9, dtype=np.int32),
    }

    def corners(forced, ignore, locations):
        random = np.random.default_rng(0)
        return [
            choose_place((30, 30, 30), locations, settings, forced=forced, ignore=ignore, generator=random).corner[0]
            for _ in range(400)
        ]

    forced = corners(True, True, locations)
    assert set(forced) == {3, 18}
    assert 140 < forced.count(3) < 260
    assert set(corners(False, True, locations)) == {7}  # with an ignore label on an annotated voxel
    assert len(set(corners(False, False, locations))) > 15  # else anywhere
    assert set(corners(True, True, {-1: locations[-1]})) == {7}  # nothing else is present
    assert len(set(corners(True, False, {}))) > 15


def test_slices_of_volumes():
    settings = StreamSettings((10, 10), 1, augmentation="none")
    locations = {1: np.array([[7, 12, 14]], dtype=np.int32)}
    place = choose_place(
        (20, 30, 30), locations, settings, forced=True, ignore=False, generator=np.random.default_rng(1)
    )
    assert (place.slice, place.corner) == (7, (7, 9))
    free = {
        choose_place(
            (5, 30, 30), locations, settings, forced=False, ignore=False, generator=np.random.default_rng(i)
        ).slice
        for i in range(100)
    }
    assert free == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": (8,)},
        {"batch_size": 0},
        {"foreground_fraction": 1.5},
        {"augmentation": "strong"},
        {"mirror_axes": (3,)},
    ],
)
def test_wrong_settings_name_the_field(wrong):
    (field,) = wrong
    with pytest.raises(UserError, match=field):
        StreamSettings(**({"patch_size": (8, 8, 8), "batch_size": 2} | wrong))
