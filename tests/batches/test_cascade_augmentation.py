import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import ball, disk

from autoseg.batches.augmentation.cascade import close_mask, damage, dilate, erode, open_mask, remove_component
from autoseg.batches.augmentation.draws import Draws
from autoseg.randomness import generator


def draws(step=0):
    return Draws(generator(1, "cascade", step))


@pytest.mark.parametrize(("shape", "element"), [((24, 26), disk), ((16, 18, 14), ball)])
@pytest.mark.parametrize("radius", [1, 2, 4])
def test_morphology_equals_scipy(shape, element, radius):
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2) > 0
    footprint = element(radius, dtype=bool)
    dilated = ndimage.binary_dilation(mask, footprint)
    eroded = ndimage.binary_erosion(mask, footprint, border_value=1)
    assert np.array_equal(dilate(mask, radius), dilated)
    assert np.array_equal(erode(mask, radius), eroded)
    assert np.array_equal(open_mask(mask, radius), ndimage.binary_dilation(eroded, footprint))
    assert np.array_equal(close_mask(mask, radius), ndimage.binary_erosion(dilated, footprint, border_value=1))


def test_empty_and_full_masks_stay():
    for value in (False, True):
        mask = np.full((5, 6, 7), value)
        for operation in (dilate, erode, open_mask, close_mask):
            assert np.array_equal(operation(mask, 3.0), mask)


def test_remove_component_takes_one_small_component():
    label_map = np.zeros((20, 20), dtype=np.int16)
    label_map[:9, :9] = 1  # 20 % of the patch stays
    label_map[15:17, 15:17] = 1
    label_map[15:17, 2:5] = 1
    label_map[12, 12] = 2
    remove_component(label_map, 1, draws())
    assert (label_map == 1).sum() in (81 + 4, 81 + 6)
    assert (label_map == 2).sum() == 1
    remove_component(label_map, 1, draws())
    remove_component(label_map, 1, draws())
    assert (label_map == 1).sum() == 81
    remove_component(label_map, 3, draws())


def test_damage_is_sometimes_done_and_keyed():
    original = np.zeros((24, 24, 24), dtype=np.int16)
    original[4:10, 4:10, 4:10] = 1
    original[14:20, 12:20, 10:20] = 2
    results = []
    for step in range(300):
        label_map = original.copy()
        damage(label_map, (1, 2), draws(step))
        assert set(np.unique(label_map)) <= {0, 1, 2}
        again = original.copy()
        damage(again, (1, 2), draws(step))
        assert np.array_equal(label_map, again)
        results.append(np.array_equal(label_map, original))
    # untouched: morphology not drawn or for neither label 0.6 + 0.4 / 4, removal likewise 0.8 + 0.2 / 4
    assert np.mean(results) == pytest.approx(0.7 * 0.85, abs=0.15)
    assert np.mean(results) < 0.75
