"""Topology: the card's worked examples and what must hold for any spacing and patch."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.planning.topology import find_topology


def test_anisotropic_spacing_pools_in_plane_first():
    found = find_topology((4, 1, 1), (24, 128, 128))
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert found.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert (found.patch_size, found.divisor, found.stages) == ((24, 128, 128), (4, 32, 32), 6)


def test_patch_is_padded_to_the_divisor():
    found = find_topology((1.5, 0.7, 0.7), (61, 300, 280))
    assert found.strides[1:] == ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))[:6]
    assert found.kernel_sizes[0] == (1, 3, 3)
    assert set(found.kernel_sizes[1:]) == {(3, 3, 3)}
    assert (found.patch_size, found.stages) == ((64, 320, 320), 7)


def test_a_short_axis_stops_early():
    found = find_topology((1, 1), (100, 23))
    assert found.strides == ((1, 1), (2, 2), (2, 2), (2, 1), (2, 1))
    assert (found.patch_size, found.divisor) == ((112, 24), (16, 4))


def test_a_lone_axis_needs_three_times_the_smallest_edge():
    assert find_topology((1, 1), (11, 4)).strides == ((1, 1),)
    assert find_topology((1, 1), (12, 4)).strides == ((1, 1), (2, 1))
    assert find_topology((1, 1), (8, 8)).strides == ((1, 1), (2, 2))
    assert find_topology((1, 1), (7, 7)).strides == ((1, 1),)


sizes = st.integers(1, 400)
spacings = st.floats(0.2, 8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(spacings, sizes), min_size=2, max_size=3))
def test_any_topology_is_sound(axes):
    spacing, patch = zip(*axes, strict=True)
    found = find_topology(spacing, patch)
    assert found.strides[0] == (1,) * len(axes)
    assert len(found.kernel_sizes) == found.stages
    for axis, wanted in enumerate(patch):
        assert 0 <= found.patch_size[axis] - wanted < found.divisor[axis]
        assert found.patch_size[axis] % found.divisor[axis] == 0
        if found.divisor[axis] > 1:
            assert found.patch_size[axis] // found.divisor[axis] >= 4
        kernels = [kernel[axis] for kernel in found.kernel_sizes]
        assert kernels == sorted(kernels), "a kernel that has grown stays"
    assert math.prod(found.divisor) == math.prod(math.prod(stride) for stride in found.strides)
    again = find_topology(spacing, found.patch_size)
    assert all(a >= b for a, b in zip(again.patch_size, found.patch_size, strict=True))


def test_fractional_sizes_are_rounded_up():
    assert find_topology((1, 1), (5.5, 6)).patch_size == (6, 6)
    assert find_topology((1, 1), (15.5, 16)).patch_size == (16, 16)


@pytest.mark.parametrize("min_edge", [2, 4, 8])
def test_smallest_edge_is_kept(min_edge):
    found = find_topology((1, 1, 1), (64, 64, 64), min_edge=min_edge)
    assert 64 // found.divisor[0] == min_edge
