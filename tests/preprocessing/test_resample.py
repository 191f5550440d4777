import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_pipeline import resize_image
from scipy import ndimage

from autoseg.preprocessing import Resampler, resample_image, separate_axis, spline_matrix
from autoseg.preprocessing.geometry import new_shape
from autoseg.preprocessing.resample import _blocks, nearest_indices

ISOTROPIC = {"current_spacing": (1.0, 1.0, 1.0), "new_spacing": (1.0, 1.0, 1.0)}
sizes = st.integers(1, 40)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 50, shape).astype(np.float32)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 9), (9, 5), (2, 7), (3, 3), (40, 13), (13, 40), (1, 4), (4, 1)])
@pytest.mark.parametrize("order", [1, 3])
def test_matrix_is_scipys_zoom_up_to_the_border(n_in, n_out, order):
    signal = noise(n_in).astype(np.float64)
    expected = ndimage.zoom(signal, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    assert spline_matrix(n_in, n_out, order) @ signal == pytest.approx(expected, abs=1e-4)


def test_order_0_takes_the_nearest_voxel_by_hand():
    assert nearest_indices(4, 2).tolist() == [1, 3]  # coordinates 0.5 and 2.5: halves go up
    assert nearest_indices(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    assert nearest_indices(3, 5).tolist() == [0, 0, 1, 2, 2]  # coordinates -0.2, 0.4, 1, 1.6, 2.2
    assert spline_matrix(3, 5, 0).argmax(axis=1).tolist() == [0, 0, 1, 2, 2]


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_order_0_is_scipys_also_where_it_rounds(n_in, n_out):
    rows = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    expected = ndimage.map_coordinates(np.arange(n_in), rows[None], order=0, mode="nearest")
    assert np.array_equal(nearest_indices(n_in, n_out), expected)


def test_order_1_by_hand():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert np.array_equal(spline_matrix(2, 4, 1), np.asarray(expected, dtype=np.float32))


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match="order must be 0, 1 or 3"):
        spline_matrix(3, 4, 2)


@given(sizes, sizes, st.sampled_from([0, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_rows_of_every_matrix_sum_to_one_and_blocks_lose_nothing(n_in, n_out, order):
    matrix = spline_matrix(n_in, n_out, order)
    assert matrix.sum(axis=1) == pytest.approx(1, abs=1e-5)
    rebuilt = np.zeros_like(matrix)
    for rows, columns, weights in _blocks(n_in, n_out, order):
        rebuilt[rows, columns] = weights
    assert np.abs(rebuilt - matrix).max() <= 1e-7


@pytest.mark.parametrize("shape", [(30, 20, 26), (12, 40, 19), (21, 33, 26), (50, 9, 70)])
@pytest.mark.parametrize("order", [1, 3])
def test_image_equals_skimage(shape, order):
    volume = noise((21, 33, 26))
    result = resample_image(volume[None], shape, **ISOTROPIC, order=order)
    assert result.dtype == np.float32
    assert result[0] == pytest.approx(resize_image(volume, shape, None, order), abs=50 * 1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [5, 9, 17])
def test_coarse_axis_takes_the_nearest_slice_and_slices_are_clipped_one_by_one(axis, size):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    shape = [20, 22, 24]
    shape[axis] = 9
    wanted = [31, 15, 33]
    wanted[axis] = size
    volume = noise(shape) * np.moveaxis(np.arange(1, 10).reshape(-1, 1, 1), 0, axis)
    result = resample_image(volume[None], wanted, current_spacing=spacing, new_spacing=spacing)
    assert result[0] == pytest.approx(resize_image(volume, tuple(wanted), axis), abs=500 * 1e-4)


def test_tensors_give_the_same():
    import torch

    volume = noise((9, 20, 22))
    for spacing in ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0)):
        arguments = {"current_spacing": spacing, "new_spacing": spacing}
        expected = resample_image(volume[None], (12, 31, 14), **arguments)
        resampler = Resampler.between(volume.shape, (12, 31, 14), **arguments)
        assert resampler.tensor(torch.from_numpy(volume)).numpy() == pytest.approx(expected[0], abs=1e-3)
        on_device = resample_image(volume[None], (12, 31, 14), **arguments, device="cpu")
        assert on_device == pytest.approx(expected, abs=1e-3)


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.floats(-1000, 1000, width=32))
@settings(max_examples=40, deadline=None)
def test_a_constant_stays_constant(shape, wanted, value):
    result = resample_image(np.full((1, *shape), value, dtype=np.float32), wanted, **ISOTROPIC)
    assert result.shape == (1, *wanted)
    assert np.allclose(result, value, rtol=1e-6)


@given(st.tuples(sizes, sizes, sizes), st.sampled_from([0, 1, 3]))
@settings(max_examples=20, deadline=None)
def test_the_same_shape_is_untouched(shape, order):
    data = noise((2, *shape))
    assert np.array_equal(resample_image(data, shape, **ISOTROPIC, order=order), data)
    assert np.array_equal(Resampler(shape, shape, (order,) * 3)(data[0]), data[0])


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_values_stay_in_the_range_of_the_input(shape, wanted, axis, anisotropic):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0 if anisotropic else 1.0
    data = noise((1, *shape))
    result = resample_image(data, wanted, current_spacing=spacing, new_spacing=spacing)
    assert result.min() >= data.min()
    assert result.max() <= data.max()


@pytest.mark.parametrize(
    ("current", "new", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (3, 1, 1), None),  # exactly 3 is not anisotropic
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 1, 4), 2),
        ((1, 5, 1), (5, 1, 1), 1),  # the current spacing decides first
        ((5, 5, 1), (9, 1, 1), None),  # two coarse axes: none apart, whatever the new spacing
    ],
)
def test_separate_axis(current, new, axis):
    assert separate_axis(current, new) == axis


def test_new_shape_rounds_half_to_even():
    assert new_shape((5, 7, 1), (1, 1, 1), (2, 2, 9)) == (2, 4, 1)  # 2.5, 3.5; never below one voxel
