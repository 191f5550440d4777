import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autoseg.inference.tiles import axis_tiles, gaussian_weights, make_tiles, mirror_combinations, padding, tile_starts


def test_positions_of_the_card():
    assert tile_starts(110, 64, 0.5) == (0, 23, 46)
    assert tile_starts(64, 64, 0.5) == (0,)
    assert tile_starts(65, 64, 0.5) == (0, 1)
    assert tile_starts(128, 64, 1.0) == (0, 64)


@given(patch=st.integers(1, 40), extra=st.integers(0, 100), step=st.sampled_from([0.25, 0.5, 0.66, 1.0]))
def test_positions_cover_the_axis_evenly(patch, extra, step):
    size = patch + extra
    starts = tile_starts(size, patch, step)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    gaps = np.diff(starts)
    assert np.all(gaps <= np.ceil(step * patch))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 2


def test_gaussian_of_the_card():
    row = gaussian_weights((8, 8))[4]
    expected = [0.0033546, 0.11109, 1.3534, 6.0653, 10, 6.0653, 1.3534, 0.11109]
    np.testing.assert_allclose(row, expected, rtol=5e-5)


@pytest.mark.parametrize("patch", [(8, 8), (5, 12, 7), (1, 3, 16), (2, 2, 2)])
def test_gaussian_equals_the_filtered_delta(patch):
    delta = np.zeros(patch)
    delta[tuple(size // 2 for size in patch)] = 1
    filtered = gaussian_filter(delta, [size / 8 for size in patch], mode="constant")
    assert filtered.min() > 0, "no zero has to be replaced before float16"
    np.testing.assert_allclose(gaussian_weights(patch), filtered / filtered.max() * 10, rtol=1e-10)


@given(st.integers(1, 33), st.integers(0, 70), st.sampled_from([0.3, 0.5, 1.0]))
def test_normalised_weights_of_an_axis_sum_to_one(patch, extra, step):
    total = np.zeros(patch + extra)
    for where, weights in axis_tiles(patch + extra, patch, step):
        assert np.all(weights > 0)
        total[where] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_normalised_weights_equal_the_gaussian_over_its_sum():
    shape, patch = (11, 14, 9), (6, 8, 5)
    gaussian, total = gaussian_weights(patch), np.zeros(shape)
    tiles = make_tiles(shape, patch, 0.5)
    for tile in tiles:
        total[tile.index] += gaussian
    assert len(tiles) == 3 * 3 * 3
    for tile in tiles:
        product = np.einsum("z,y,x->zyx", *tile.weights)
        np.testing.assert_allclose(product, gaussian / total[tile.index], rtol=1e-5)


def test_a_flat_patch_takes_every_slice():
    tiles = make_tiles((3, 10, 4), (4, 4), 0.5)
    assert len(tiles) == 3 * 4
    assert {tile.index[0].start for tile in tiles} == {0, 1, 2}
    assert all(tile.extent == (1, 4, 4) for tile in tiles)


def test_padding_is_split_evenly_with_the_odd_voxel_at_the_end():
    assert padding((5, 9, 20), (8, 9, 10)) == [(1, 2), (0, 0), (0, 0)]
    assert padding((1, 3, 20), (8, 10)) == [(0, 0), (2, 3), (0, 0)]


def test_mirrors_are_all_subsets():
    assert mirror_combinations(()) == [()]
    assert mirror_combinations((0, 2)) == [(), (0,), (2,), (0, 2)]
    assert len(mirror_combinations((0, 1, 2))) == 8
