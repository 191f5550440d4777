"""Hand-computed scores, empty-mask rules, ignored voxels, regions, and a slow oracle for surface distances."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.evaluation import Scores, evaluate_case
from autoseg.evaluation.overlap import counts_from_histogram, histogram_size, joint_histogram
from autoseg.evaluation.surface import surface, surface_distances
from autoseg.labels import Labels

TWO = Labels(values={"a": (1,), "b": (2,)})
ONE = Labels(values={"a": (1,)})


def test_overlap_by_hand():
    prediction = np.array([[[1, 1, 2, 0, 0, 2]]])
    reference = np.array([[[1, 0, 2, 2, 1, 2]]])
    scores = evaluate_case(prediction, reference, labels=TWO, spacing=(2, 1, 0.5))
    assert (scores["a"].tp, scores["a"].fp, scores["a"].fn) == (1, 1, 1)
    assert scores["a"].dice == pytest.approx(0.5)
    assert scores["a"].iou == pytest.approx(1 / 3)
    assert (scores["b"].tp, scores["b"].fp, scores["b"].fn) == (2, 0, 1)
    assert scores["b"].dice == pytest.approx(4 / 5)
    assert scores["b"].volume_prediction_ml == pytest.approx(2 * 1 / 1000)
    assert scores["b"].volume_reference_ml == pytest.approx(3 * 1 / 1000)


def test_regions_are_unions():
    labels = Labels(
        values={"whole": (1, 2), "core": (2,)}, regions=True, paint_order=("whole", "core"), paint_values=(1, 2)
    )
    prediction = np.array([[[1, 1, 2, 0]]])
    reference = np.array([[[2, 0, 2, 1]]])
    scores = evaluate_case(prediction, reference, labels=labels, spacing=(1, 1, 1))
    assert (scores["whole"].tp, scores["whole"].fp, scores["whole"].fn) == (2, 1, 1)
    assert (scores["core"].tp, scores["core"].fp, scores["core"].fn) == (1, 0, 1)


def test_empty_masks():
    empty, dot = np.zeros((3, 3, 3), int), np.zeros((3, 3, 3), int)
    dot[1, 1, 1] = 1
    both = evaluate_case(empty, empty, labels=ONE, spacing=(1, 1, 1))["a"]
    assert (both.dice, both.iou, both.hd95, both.nsd) == (None, None, None, None)
    assert both.volume_reference_ml == 0
    for prediction, reference in ((empty, dot), (dot, empty)):
        one = evaluate_case(prediction, reference, labels=ONE, spacing=(1, 1, 1))["a"]
        assert (one.dice, one.iou, one.hd95, one.nsd) == (0, 0, None, 0)


def test_ignored_voxels_do_not_count():
    labels = Labels(values={"a": (1,)}, ignore=(9,))
    reference = np.array([[[1, 1, 2, 2, 0]]])  # internal 2 is "ignore"
    prediction = np.array([[[1, 0, 1, 2, 2]]])
    scores = evaluate_case(prediction, reference, labels=labels, spacing=(1, 1, 1))["a"]
    assert (scores.tp, scores.fp, scores.fn) == (1, 0, 1)
    assert scores.hd95 == pytest.approx(0.95)  # reference surface at 0 and 1, prediction at 0


def test_outside_counts_as_background():
    prediction, reference = np.array([[[1, 0]]]), np.array([[[1, -1]]])
    assert evaluate_case(prediction, reference, labels=ONE, spacing=(1, 1, 1))["a"].dice == 1


def test_unannotated_names_are_undefined():
    both = np.array([[[1, 2]]])
    scores = evaluate_case(both, both, labels=TWO, spacing=(1, 1, 1), annotated=("b",))
    assert scores["a"] == Scores(volume_prediction_ml=0.001)
    assert scores["b"].dice == 1


def test_natural_image_is_scored_in_its_plane_in_pixels():
    reference = np.zeros((1, 8, 8), int)
    reference[0, 2:5, 2:5] = 1
    prediction = np.roll(reference, 2, axis=2)
    scores = evaluate_case(prediction, reference, labels=ONE, spacing=(999, 1, 1), tolerance_mm=2)["a"]
    assert scores.hd95 == pytest.approx(2)
    assert scores.nsd == 1
    assert scores.volume_reference_ml is None


@pytest.mark.parametrize(("axis", "expected"), [(0, 3.0), (1, 1.0), (2, 0.5)])
def test_shifted_cube_in_an_anisotropic_grid(axis, expected):
    reference = np.zeros((12, 12, 12), int)
    reference[3:8, 3:8, 3:8] = 1
    prediction = np.roll(reference, 1, axis=axis)
    scores = evaluate_case(prediction, reference, labels=ONE, spacing=(3, 1, 0.5), tolerance_mm=expected)["a"]
    assert scores.hd95 == pytest.approx(expected)
    assert scores.nsd == 1
    # Below the tolerance only the voxels on both surfaces count: the side walls without the two end faces' interior.
    tight = evaluate_case(prediction, reference, labels=ONE, spacing=(3, 1, 0.5), tolerance_mm=expected * 0.9)["a"]
    assert 0 < tight.nsd < 1


def test_nsd_by_hand():
    reference, prediction = np.zeros((2, 1, 10), int)
    reference, prediction = np.zeros((1, 1, 10), int), np.zeros((1, 1, 10), int)
    reference[..., 0:2] = 1  # surface voxels 0 and 1
    prediction[..., 1:5] = 1  # one row: every voxel is surface, 1..4
    scores = evaluate_case(prediction, reference, labels=ONE, spacing=(1, 1, 1), tolerance_mm=1)["a"]
    assert scores.nsd == pytest.approx(4 / 6)  # distances 0 1 2 3 | 1 0
    assert scores.hd95 == pytest.approx(np.percentile([0, 1, 2, 3], 95))


def test_surface_of_a_cube_is_its_shell():
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert surface(mask).sum() == 5**3 - 3**3
    assert surface(np.ones((4, 4), bool)).sum() == 16 - 4  # the image border is a border of the mask


def oracle(prediction, reference, spacing):
    """Every pair of surface voxels, one by one."""

    def shell(mask):
        points = []
        for point in itertools.product(*map(range, mask.shape)):
            if not mask[point]:
                continue
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                other = list(point)
                other[axis] += step
                if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                    points.append(point)
                    break
        return points

    def directed(sources, targets):
        return sorted(
            min(
                math.dist(
                    [a * s for a, s in zip(p, spacing, strict=True)], [b * s for b, s in zip(q, spacing, strict=True)]
                )
                for q in targets
            )
            for p in sources
        )

    a, b = shell(prediction), shell(reference)
    return directed(a, b), directed(b, a)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(1, 5, 6), (4, 5, 3), (3, 3, 7), (6, 5)]),
    spacing=st.tuples(*[st.sampled_from([0.4, 1.0, 2.5])] * 3),
    seed=st.integers(0, 10_000),
)
def test_distances_equal_the_oracle(shape, spacing, seed):
    random = np.random.default_rng(seed)
    masks = [random.random(shape) < random.uniform(0.1, 0.9) for _ in range(2)]
    for mask in masks:
        mask.flat[random.integers(mask.size)] = True
    spacing = spacing[: len(shape)]
    found, expected = surface_distances(*masks, spacing), oracle(*masks, spacing)
    np.testing.assert_allclose(np.sort(found.to_reference), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sort(found.to_prediction), expected[1], rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_counts_equal_boolean_reductions(seed):
    random = np.random.default_rng(seed)
    labels = Labels(
        values={"w": (1, 2, 3), "c": (2, 3), "e": (3,)}, ignore=(7,), regions=True,
        paint_order=("w", "c", "e"), paint_values=(1, 2, 3),
    )  # fmt: skip
    prediction, reference = random.integers(0, 4, (3, 4, 5)), random.integers(-1, 5, (3, 4, 5))
    counts = counts_from_histogram(joint_histogram(prediction, reference, size=histogram_size(labels)), labels)
    known = reference != 4
    for name, members in zip(labels.names, labels.members, strict=True):
        p, r = np.isin(prediction, members) & known, np.isin(reference, members) & known
        assert (counts[name].tp, counts[name].fp, counts[name].fn) == ((p & r).sum(), (p & ~r).sum(), (~p & r).sum())


def test_histogram_over_several_slabs(monkeypatch):
    monkeypatch.setattr("autoseg.evaluation.overlap._SLAB", 7)
    random = np.random.default_rng(0)
    prediction, reference = random.integers(0, 3, (3, 4, 5)), random.integers(0, 3, (3, 4, 5))
    expected = [[((prediction == p) & (reference == r)).sum() for r in range(3)] for p in range(3)]
    assert joint_histogram(prediction, reference, size=3).tolist() == expected
