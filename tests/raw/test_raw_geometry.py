"""Comparing grids and putting a label map on another grid."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.raw import Geometry, compare, resample_label

GRID = Geometry((2.0, 1.0, 0.5), (10, 20, 30), (5.0, -3.0, 7.0), (1, 0, 0, 0, 1, 0, 0, 0, 1), 3, Path("a.nii"))


def test_corners_by_hand():
    corners = GRID.corners
    assert corners.min(0).tolist() == [5, -3, 7]
    assert corners.max(0).tolist() == [5 + 29 * 0.5, -3 + 19, 7 + 9 * 2]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "equal"),
        ({"origin": (5.02, -3.0, 7.0)}, "equal"),  # 0.02 mm < 5 % of 0.5 mm
        ({"origin": (5.03, -3.0, 7.0)}, "resolvable"),
        ({"spacing": (2.0, 1.0, 0.55)}, "resolvable"),
        ({"size": (5, 20, 30)}, "resolvable"),
        ({"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, "resolvable"),  # touches in one plane of voxels
        ({"origin": (500.0, -3.0, 7.0)}, "irreconcilable"),
        ({"origin": (5.0, -3.0, 25.5)}, "resolvable"),
        ({"origin": (5.0, -3.0, 26.5)}, "irreconcilable"),
        ({"physical": False}, "equal"),
        ({"physical": False, "size": (10, 20, 31)}, "irreconcilable"),
    ],
)
def test_three_verdicts(change, verdict):
    assert compare(GRID, replace(GRID, **change)).verdict == verdict


def test_distance_is_in_millimetres():
    assert compare(GRID, replace(GRID, origin=(8.0, 1.0, 7.0))).distance == pytest.approx(5.0)


def test_a_cropped_label_comes_back_to_its_place():
    label = np.random.default_rng(0).integers(0, 4, (10, 20, 30)).astype(np.uint8)
    part = replace(GRID, size=(4, 10, 12), origin=(5 + 6 * 0.5, -3 + 5.0, 7 + 3 * 2.0))
    inside = (slice(3, 7), slice(5, 15), slice(6, 18))
    whole = resample_label(label[inside], part, GRID)
    expected = np.zeros_like(label)
    expected[inside] = label[inside]
    assert np.array_equal(whole, expected)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0.4, 3)] * 3), st.floats(-1, 1), st.tuples(*[st.floats(-4, 4)] * 3))
def test_resampling_agrees_with_simpleitk(spacing, angle, shift):
    # Away from round numbers, where the nearest voxel is a matter of taste.
    spacing, angle, shift = np.multiply(spacing, 1.0137), angle + 0.0311, np.add(shift, 0.0123)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    other = Geometry(
        tuple(spacing.tolist()), (9, 8, 7), tuple(np.add(GRID.origin, shift)), tuple(turn.ravel()), 3, Path("b.nii")
    )
    label = np.random.default_rng(0).integers(0, 4, other.size).astype(np.uint8)
    image, grid = sitk.GetImageFromArray(label), sitk.Image(*GRID.size[::-1], sitk.sitkUInt8)
    for itk, geometry in ((image, other), (grid, GRID)):
        itk.SetSpacing(geometry.spacing[::-1])
        itk.SetOrigin(geometry.origin)
        itk.SetDirection(geometry.direction)
    reference = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    mine = resample_label(label, other, GRID)
    assert (mine == reference).mean() > 0.999
