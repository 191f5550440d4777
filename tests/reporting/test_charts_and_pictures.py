"""Scales, thinning, contours and slices."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from autoseg.labels import Labels
from autoseg.reporting.charts import _scale, _thinned, line_chart, strip_chart
from autoseg.reporting.markup import duration, number, table
from autoseg.reporting.pictures import contour_picture, largest_slice


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (-0.93, 0.41, [-1, -0.5, 0, 0.5]), (3, 3, None), (0, 0.01, None)],
)
def test_ticks_enclose_the_values(low, high, expected):
    first, last, ticks = _scale(low, high)
    assert first <= low <= high <= last
    assert 3 <= len(ticks) <= 7
    if expected:
        assert ticks == pytest.approx(expected)


def test_long_logs_are_thinned_to_means_of_bins():
    points = [(index / 9999, float(index % 2)) for index in range(10_000)]
    thinned = _thinned(points)
    assert len(thinned) == 240
    assert all(0.4 < y < 0.6 for _, y in thinned)
    assert _thinned([(0, float("nan")), (1, 2)]) == [(1, 2)]


def test_charts_without_values_are_empty():
    assert line_chart("Loss", {"fold 0": []}) == ""
    assert strip_chart("Dice", {"a": []}) == ""
    assert "<circle" in line_chart("Loss", {"fold 0": [(0.5, 1.0)]})


def test_cells():
    assert number(None).value is None
    assert number(float("nan")).shown == "\N{EN DASH}"
    assert number(0.12345, 2).shown == "0.12"
    assert 'data-value=""' in table(["a"], [[number(None)]])
    assert (duration(12), duration(90), duration(7320), duration(None)) == (
        "12.0 s",
        "1.5 min",
        "2 h 2 min",
        "\N{EN DASH}",
    )


def test_slice_with_most_foreground_across_the_coarsest_axis():
    image = np.random.default_rng(0).random((1, 20, 6, 30)).astype(np.float32)
    reference, prediction = np.zeros((20, 6, 30), int), np.zeros((20, 6, 30), int)
    reference[8:12, 4, 10:15] = 1
    prediction[8:12, 2, 10:12] = 1
    plane = largest_slice(image, prediction, reference, (1, 5, 1))
    assert plane.position == "plane 5 of 6 along y"
    assert plane.spacing == (1.0, 1.0)
    assert plane.reference.sum() == 20
    assert plane.image.shape == plane.reference.shape
    assert plane.image.shape[1] < 30  # cut around the foreground


def test_picture_holds_the_image_and_contours_around_the_pixels():
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    reference = np.zeros((1, 4, 4), int)
    reference[0, 1:3, 1:3] = 1
    plane = largest_slice(image, reference * 0, reference, (999, 2, 1))
    markup = contour_picture(plane, Labels(values={"<a>": (1,)}), "title")
    assert 'viewBox="0 0 4.00 8.00"' in markup  # rows are 2 mm apart, columns 1 mm
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1])))
    assert picture.size == (4, 4)
    path = re.search(r'class="reference" d="M([^Z]+)Z"', markup)[1]
    points = np.array([[float(v) for v in point.split(",")] for point in path.split()])
    assert points.min(axis=0) == pytest.approx([1, 1])  # pixels 1 and 2 cover 1..3
    assert points.max(axis=0) == pytest.approx([3, 3])
    assert 'class="prediction"' not in markup
    assert "&lt;a&gt;" in markup


def test_colour_images():
    image = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)
    empty = np.zeros((1, 8, 8), int)
    assert largest_slice(image, empty, empty, (999, 1, 1), colour=True).image.shape == (8, 8, 3)
