"""Stages of tokens from a plan's stages."""

import pytest
from autoseg.architectures.blocks.patch_strides import grids, patch_strides, strides_from_patch
from network_specs import make_spec

from autoseg.errors import UserError


def test_the_first_two_strides_join():
    spec = make_spec(2, stages=6, patch=(64, 96))
    sizes = patch_strides(spec, 4, joins=True)
    assert sizes["strides"] == ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2))
    assert patch_strides(spec, 4, joins=False)["strides"] == ((1, 1), *[(2, 2)] * 4)
    assert patch_strides(spec, 2, joins=True)["strides"] == ((1, 1), (4, 4), (2, 2))


def test_joining_twice_changes_nothing():
    spec = make_spec(3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2)), patch=(8, 16, 64))
    once = spec.model_copy(update={**patch_strides(spec, 3, joins=True), "features": (1,) * 4})
    assert once.strides == ((1, 1, 1), (2, 4, 4), (2, 2, 2), (1, 1, 2))
    assert patch_strides(once, 3, joins=True)["strides"] == once.strides


def test_joining_ends_at_patches_of_4():
    spec = make_spec(3, strides=((1, 1, 1), (1, 1, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1)), patch=(64, 64, 16))
    once = spec.model_copy(update={**patch_strides(spec, 3), "features": (1,) * 3})
    assert once.strides == ((1, 1, 1), (4, 4, 4), (2, 2, 1))
    assert patch_strides(once, 3)["strides"] == once.strides


def test_short_axes_are_not_quartered():
    spec = make_spec(2, stages=6, patch=(64, 96))
    assert patch_strides(spec, 4, smallest=96)["strides"] == ((1, 1), *[(2, 2)] * 4)
    assert patch_strides(spec, 4, smallest=64)["strides"][1] == (4, 4)


def test_kernels_stay_with_their_resolution():
    spec = make_spec(3, strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)), patch=(8, 16, 16))
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    spec = spec.model_copy(update={"kernel_sizes": kernels})
    assert patch_strides(spec, 4, joins=True)["kernel_sizes"] == ((1, 3, 3), (3, 3, 3), (3, 3, 3))


def test_two_resolutions_have_nothing_to_join():
    assert patch_strides(make_spec(2, stages=2), 4, joins=True)["strides"] == ((1, 1), (2, 2))


def test_grids():
    spec = make_spec(3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), patch=(6, 16, 8))
    assert grids(spec) == [(6, 16, 8), (6, 8, 4), (3, 4, 2)]


@pytest.mark.parametrize(
    ("strides", "patch", "wanted"),
    [
        (((2, 2), (2, 2)), None, ((2, 2), (2, 2))),
        (((2, 2), (2, 2), (2, 2)), None, ((4, 4), (2, 2))),
        (((2, 2), (2, 2), (2, 2)), (2, 2), ((2, 2), (2, 2), (2, 2))),
        (((2, 2), (2, 2), (2, 2)), (8, 8), ((8, 8),)),
        (((2, 1), (1, 2), (2, 2), (2, 2)), None, ((2, 2), (2, 2), (2, 2))),
        (((4, 4), (4, 4), (2, 2)), None, ((4, 4), (4, 4), (2, 2))),
    ],
)
def test_strides_from_a_patch(strides, patch, wanted):
    spec = make_spec(strides=((1, 1), *strides), dims=2)
    found = strides_from_patch(spec, 9, patch)
    assert found["strides"] == ((1, 1), *wanted)
    assert len(found["kernel_sizes"]) == len(found["strides"])
    again = make_spec(strides=found["strides"], dims=2)
    assert strides_from_patch(again, 9, wanted[0]) == found


def test_a_patch_that_the_strides_do_not_make_is_refused():
    with pytest.raises(UserError, match="make no patches of"):
        strides_from_patch(make_spec(strides=((1, 1), (2, 2)), dims=2), 4, (4, 4))
