import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_pipeline import resize_labels
from scipy import ndimage

from autoseg.preprocessing import resample_labels

sizes = st.integers(1, 14)


def blobs(shape, labels, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (np.digitize(smooth, np.quantile(smooth, np.linspace(0.2, 1, labels)[:-1])) - 1).astype(np.int16)


@pytest.mark.parametrize("wanted", [(30, 20, 26), (11, 40, 26), (40, 9, 50), (10, 11, 13)])
@pytest.mark.parametrize("labels", [2, 5, 30])
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_equals_the_rule_with_skimage(wanted, labels, axis):
    label = blobs((20, 22, 26), labels)
    spacing = [1.0, 1.0, 1.0]
    if axis is not None:
        spacing[axis] = 7.0
    result = resample_labels(label, wanted, current_spacing=spacing, new_spacing=spacing)
    assert result.dtype == np.int16
    assert np.array_equal(result, resize_labels(label, wanted, axis))


def test_halfway_goes_to_the_larger_label_and_a_third_label_leaves_background():
    isotropic = {"current_spacing": (1, 1, 1), "new_spacing": (1, 1, 1)}
    two = np.asarray([[[1, 3]]], dtype=np.int16)
    assert resample_labels(two, (1, 1, 1), **isotropic).item() == 3
    four = np.asarray([[[1, 2], [3, 4]]], dtype=np.int16)  # a quarter each: none has one half
    assert resample_labels(four, (1, 1, 1), **isotropic).item() == 0
    assert resample_labels(-two, (1, 1, 1), **isotropic).item() == -1


def test_outside_survives():
    label = np.full((6, 6, 6), -1, dtype=np.int16)
    label[2:4, 2:4, 2:4] = 1
    result = resample_labels(label, (12, 12, 12), current_spacing=(1, 1, 1), new_spacing=(0.5, 0.5, 0.5))
    assert result[0, 0, 0] == -1
    assert result[5, 5, 5] == 1
    assert set(np.unique(result)) <= {-1, 0, 1}
    assert (result == 1).sum() == pytest.approx(8 * 8, abs=24)  # about the same volume


def test_slabs_do_not_show(monkeypatch):
    import sys

    label = blobs((20, 22, 26), 6)
    arguments = {"current_spacing": (1, 1, 1), "new_spacing": (1, 1, 1)}
    whole = resample_labels(label, (33, 30, 20), **arguments)
    monkeypatch.setattr(sys.modules["autoseg.preprocessing.resample_labels"], "VOXELS_PER_SLAB", 1300)
    assert np.array_equal(resample_labels(label, (33, 30, 20), **arguments), whole)


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_labels_stay_in_the_set_and_the_same_shape_is_untouched(shape, wanted, seed, anisotropic):
    spacing = (4.0, 1.0, 1.0) if anisotropic else (1.0, 1.0, 1.0)
    values = np.asarray([-1, 0, 3, 117, 300], dtype=np.int16)
    label = np.random.default_rng(seed).choice(values, size=shape)
    arguments = {"current_spacing": spacing, "new_spacing": spacing}
    assert set(np.unique(resample_labels(label, wanted, **arguments))) <= {*np.unique(label), 0}
    assert np.array_equal(resample_labels(label, shape, **arguments), label)
    constant = np.full(shape, 5, dtype=np.int16)
    assert (resample_labels(constant, wanted, **arguments) == 5).all()
