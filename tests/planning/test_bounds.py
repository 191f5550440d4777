"""Data that no plan can hold are told by field and value, whatever planner meets them."""

import math

import pytest
from planning_factory import make_dataset, make_fingerprint

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.planning import Resources, timed

SHAPE = (40, 50, 60)
PLANNERS = sorted(found.name for found in plugins.list_plugins("planner"))


@pytest.fixture
def no_clock(monkeypatch):
    def time_step(*_, **__):
        raise AssertionError("a step was timed for data that no plan can hold")

    monkeypatch.setattr(timed, "time_step", time_step)


def told(planner, fingerprint, labels=3):
    with pytest.raises(UserError) as caught:
        plugins.load("planner", planner)().plan(fingerprint, Resources("cpu", 8.0), make_dataset(labels))
    assert caught.value.where == "the plans of Dataset001_Test"
    assert "spacing (mm), size, channels or labels of the images" in caught.value.mend
    return caught.value.what


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("spacing", "fault"),
    [
        ((1, 1, 1e-9), "field target_spacing.2: Input should be greater than or equal to 0.000001, got '1e-09'"),
        ((1e7, 1, 1), "field target_spacing.0: Input should be less than or equal to 100000, got '10000000.0'"),
        ((1, math.nan, 1), "field spacings.0.1: Input should be a finite number, got 'nan'"),
        ((1, 1, 0), "field spacings.0.2: Input should be greater than 0, got '0.0'"),
    ],
)
def test_a_spacing_that_cannot_be(planner, spacing, fault):
    assert told(planner, make_fingerprint([spacing], [SHAPE])) == fault


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("planner", PLANNERS)
def test_more_channels_or_classes_than_a_network_has(planner):
    many = make_fingerprint((1, 1, 1), SHAPE, cases=5, channels=[f"c{number}" for number in range(65537)])
    assert told(planner, many) == "field in_channels: Input should be less than or equal to 65536, got '65537'"
    many = make_fingerprint((1, 1, 1), SHAPE, cases=5, labels=65537)
    fault = "field num_outputs: Input should be less than or equal to 65536, got '65537'"
    assert told(planner, many, labels=65537) == fault


def test_a_voxel_so_long_that_no_patch_holds_one():
    fingerprint = make_fingerprint((9e4, 1e-5, 1), SHAPE, cases=5)
    assert told("nnunet", fingerprint) == "field patch_size.0: Input should be greater than or equal to 1, got '0'"


def test_a_batch_beyond_all_bounds():
    fingerprint = make_fingerprint((1, 1, 1), (2 * 10**9, 4, 4), cases=5)
    assert told("nnunet", fingerprint) == "field batch_size: Input should be less than or equal to 65536, got '996094'"


@pytest.mark.parametrize("spacing", [1e-6, 1e5])
def test_the_bounds_themselves_are_planned(spacing):
    fingerprint = make_fingerprint((spacing,) * 3, SHAPE, cases=5)
    plans = plugins.load("planner", "nnunet")().plan(fingerprint, Resources("cpu", 8.0), make_dataset())
    assert plans.configuration("3d_fullres").spacing == (spacing,) * 3
