"""Rules from the fingerprint to spacing, axes, shapes, normalisation and batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.planning import rules
from autoseg.planning.topology import find_topology


def test_target_spacing_is_the_median():
    spacings = [(1, 1, 1), (2, 1, 1.5), (3, 1, 2)]
    assert rules.target_spacing(spacings, [(100, 100, 100)] * 3).tolist() == [2, 1, 1.5]


def test_a_coarse_axis_with_few_slices_takes_its_tenth_percentile():
    spacings = [(5.0, 1.5, 1.5)] + [(10.0, 1.5, 1.5)] * 9
    target = rules.target_spacing(spacings, [(10, 200, 200)] * 10)
    assert target.tolist() == [9.5, 1.5, 1.5]  # numpy's linear interpolation between the first two
    assert rules.target_spacing(spacings, [(80, 200, 200)] * 10).tolist() == [10, 1.5, 1.5]  # not few slices


def test_the_coarse_axis_never_becomes_the_finest():
    spacings = [(0.5, 1.0, 1.0)] * 2 + [(5.0, 1.0, 1.0)] * 8
    target = rules.target_spacing(spacings, [(10, 200, 200)] * 10)
    assert target.tolist() == [1.0 + 1e-5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("target", "forward", "backward"),
    [((1, 1, 1), (0, 1, 2), (0, 1, 2)), ((1, 1, 3), (2, 0, 1), (1, 2, 0)), ((1, 3, 2), (1, 0, 2), (1, 0, 2))],
)
def test_the_coarsest_axis_comes_first(target, forward, backward):
    assert rules.transposes(target) == (forward, backward)
    assert [forward[axis] for axis in backward] == [0, 1, 2]


def test_resampled_shape_rounds_half_to_even():
    assert rules.resampled_shape((5, 5, 7), (1, 1, 1), (2, 1, 2)) == (2, 5, 4)


def test_median_shape_may_be_a_half():
    assert rules.median_shape([(1, 1, 1)] * 2, [(3, 8, 8), (4, 8, 8)], (1, 1, 1)).tolist() == [3.5, 8, 8]


def test_normalisation_goes_by_channel_name():
    names = ("CT", "ct", "MRI", "noNorm", "rescale_to_0_1", "RGB_to_0_1", "zscore")
    schemes, masks = rules.normalization(names, 0.7)
    assert schemes == ("ct", "ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1", "zscore")
    assert masks == (False, False, True, False, False, False, True)
    assert rules.normalization(names, 0.75)[1] == (False,) * 7


def test_initial_patch_is_isotropic_in_mm_and_within_the_median():
    assert rules.initial_patch((1, 1, 1), (1000, 1000, 1000)) == [256, 256, 256]
    assert rules.initial_patch((4, 1, 1), (1000, 1000, 1000)) == [102, 406, 406]
    assert rules.initial_patch((1, 1), (36.5, 5000)) == [36.5, 2048]


def test_shrinking_takes_the_axis_that_covers_most():
    spacing, median = (1, 1, 1), (256, 256, 128)
    start = find_topology(spacing, (128, 128, 128))
    assert rules.shrink(start, spacing, median).patch_size == (128, 128, 112)


def test_shrinking_skips_no_size():
    assert rules.shrink(find_topology((1, 1), (256, 256)), (1, 1), (300, 256)).patch_size == (256, 224)


def test_shrinking_ends():
    topology, steps = find_topology((1, 1, 1), (64, 64, 64)), 0
    while topology is not None:
        smallest, steps = topology, steps + 1
        topology = rules.shrink(topology, (1, 1, 1), (64, 64, 64))
    assert min(smallest.patch_size) == 1
    assert steps < 100


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(0.3, 5)] * 3), st.tuples(*[st.integers(5, 300)] * 3), st.integers(2**12, 2**21))
def test_the_search_ends_within_the_limit(spacing, median, most):
    found = rules.search_patch(spacing, median, lambda topology: np.prod(topology.patch_size) > most)
    assert np.prod(found.patch_size) <= most
    assert all(size <= edge + step for size, edge, step in zip(found.patch_size, median, found.divisor, strict=True))


def test_low_resolution_evens_out_the_axes_first():
    assert rules.coarser(np.array([3.0, 1.0, 2.0])).tolist() == [3.0, 1.03, 2.0]
    assert rules.coarser(np.array([2.0, 1.0, 1.0])).tolist() == [2.06, 1.03, 1.03]


def test_batch_covers_a_share_of_the_data():
    assert rules.covered_batch(0.05, 63_000 * 260, (40, 56, 40)) == 9


def test_in_words():
    assert rules.in_words((1, 0.7675781, 40.0)) == "1 x 0.768 x 40"
