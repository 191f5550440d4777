import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.preprocessing.crop import bounding_box, crop, fill_holes


def test_a_hole_is_inside_and_the_corner_is_outside():
    image = np.zeros((2, 7, 8, 9), dtype=np.float32)
    image[0, 1:6, 1:6, 1:6] = 5
    image[0, 3, 3, 3] = 0  # a hole
    image[1, 2, 2, 7] = -1  # the other channel makes the box larger
    label = np.zeros((7, 8, 9), dtype=np.int16)
    label[3, 3, 4] = 2
    label[2, 5, 7] = 1  # foreground outside of the non-zero region stays
    cropped = crop(image, label, (3.0, 1.0, 1.0))
    assert cropped.box == ((1, 6), (1, 6), (1, 8))
    assert cropped.image.shape == (2, 5, 5, 7)
    assert cropped.shape_before_crop == (7, 8, 9)
    assert cropped.label[2, 2, 2] == 0  # the hole
    assert cropped.label[2, 2, 3] == 2
    assert cropped.label[1, 4, 6] == 1
    assert cropped.label[0, 0, 6] == -1
    assert cropped.label[1, 1, 6] == 0  # where the other channel is non-zero


def test_without_label_map_inside_and_outside_are_told_if_asked():
    image = np.zeros((1, 5, 5, 5), dtype=np.float32)
    image[0, 1:4, 1:4, 1:4] = np.indices((3, 3, 3)).sum(axis=0)
    cropped = crop(image, None, (1, 1, 1))
    assert not cropped.labelled
    assert cropped.label[0, 0, 0] == -1
    assert (cropped.label == 0).sum() == 26
    assert crop(image, None, (1, 1, 1), mark_outside=False).label is None


def test_an_empty_image_is_kept_whole():
    cropped = crop(np.zeros((1, 4, 5, 6), dtype=np.float32), np.zeros((4, 5, 6), dtype=np.int16), (1, 1, 1))
    assert cropped.box == ((0, 4), (0, 5), (0, 6))
    assert (cropped.label == 0).all()


def test_nothing_is_filled_in_a_single_slice():
    ring = np.ones((1, 5, 5), dtype=bool)
    ring[0, 2, 2] = False
    assert np.array_equal(fill_holes(ring), ring)
    label = crop(ring[None].astype(np.float32), np.zeros(ring.shape, dtype=np.int16), (999, 1, 1)).label
    assert label[0, 2, 2] == -1


@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 10_000), st.floats(0.3, 0.9))
@settings(max_examples=80, deadline=None)
def test_holes_are_those_of_scipy_also_after_cropping(shape, seed, share):
    mask = np.random.default_rng(seed).random(shape) < share
    expected = ndimage.binary_fill_holes(mask)
    assert np.array_equal(fill_holes(mask), expected)
    if mask.any():
        inside = tuple(slice(*pair) for pair in bounding_box(mask))
        assert np.array_equal(fill_holes(mask[inside]), expected[inside])


def test_transposing_takes_everything_along():
    image = np.zeros((1, 4, 6, 8), dtype=np.float32)
    image[0, 1:3, 2:6, 0:5] = 1
    cropped = crop(image, np.arange(192, dtype=np.int16).reshape(4, 6, 8), (1.0, 2.0, 3.0)).transposed((2, 0, 1))
    assert cropped.image.shape == (1, 5, 2, 4)
    assert cropped.spacing == (3.0, 1.0, 2.0)
    assert cropped.box == ((0, 5), (1, 3), (2, 6))
    assert cropped.shape_before_crop == (8, 4, 6)
    assert cropped.label[3, 0, 1] == np.arange(192).reshape(4, 6, 8)[1, 3, 3]


def test_bounding_box_by_hand():
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[1, 3, 0] = mask[2, 1, 0] = True
    assert bounding_box(mask) == ((1, 3), (1, 4), (0, 1))
    with pytest.raises(IndexError):
        bounding_box(np.zeros((2, 2, 2), dtype=bool))
