import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.special import expit, softmax
from skimage.transform import resize
from torch.utils._python_dispatch import TorchDispatchMode

from autoseg.inference import (
    Outputs,
    Resampled,
    export_rows,
    label_map,
    logits_to_label_map,
    logits_to_probabilities,
    probabilities,
    resampling,
    uncertainty,
)
from autoseg.labels import Labels
from autoseg.preprocessing import CaseProperties

FOUR = Labels(values={"a": (1,), "b": (2,), "c": (5,)})
REGIONS = Labels(
    values={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
    regions=True,
    paint_order=("whole", "core", "enhancing"),
    paint_values=(1, 2, 3),
)


def geometry(forward=(0, 1, 2)):
    """Plans reduced to what the export reads."""
    return SimpleNamespace(transpose_forward=forward, transpose_backward=tuple(int(i) for i in np.argsort(forward)))


def configuration(*spacing):
    return SimpleNamespace(spacing=spacing, dims=len(spacing))


def case(before, box, resampled, spacing):
    after = tuple(high - low for low, high in box)
    return CaseProperties(
        spacing=spacing, shape_before_crop=before, crop_box=box, shape_after_crop=after, shape_resampled=resampled
    )


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def resampled_as_nnunet_does(values, shape, separate):
    """Whole float64 volumes through skimage, slice by slice with order 0 between the slices if an axis is separate."""
    stack = []
    for volume in values.double().numpy():
        if separate is None:
            stack.append(resize(volume, shape, 1, mode="edge", anti_aliasing=False))
            continue
        plane = [size for axis, size in enumerate(shape) if axis != separate]
        slices = [resize(part, plane, 1, mode="edge", anti_aliasing=False) for part in np.moveaxis(volume, separate, 0)]
        moved = np.stack(slices, separate)
        if moved.shape[separate] != shape[separate]:
            coordinates = list(np.meshgrid(*(np.arange(size, dtype=float) for size in shape), indexing="ij"))
            scale = moved.shape[separate] / shape[separate]
            coordinates[separate] = scale * (coordinates[separate] + 0.5) - 0.5
            moved = map_coordinates(moved, coordinates, order=0, mode="nearest")
        stack.append(moved)
    return np.stack(stack)


CASES = {
    "same grid": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (7, 9, 8), None),
    "isotropic": ((1.3, 0.9, 1.1), (1.0, 1.0, 1.0), (9, 8, 10), None),
    "thick slices": ((5.0, 0.8, 0.8), (4.0, 1.0, 1.0), (9, 7, 8), 0),
    "thick, same number": ((5.0, 0.8, 0.8), (5.0, 1.0, 1.0), (7, 8, 6), 0),
    "thick last axis": ((0.8, 0.8, 5.0), (1.0, 1.0, 5.5), (6, 8, 7), 2),
    "flat plan": ((5.0, 0.8, 0.8), (1.0, 1.0), (7, 6, 7), 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("slab_values", [1, 200, 10**6])
def test_probabilities_and_labels_equal_whole_volume_resampling(name, forward, slab_values, monkeypatch):
    monkeypatch.setattr(resampling, "SLAB_VALUES", slab_values)
    spacing, target, resampled, separate = CASES[name]
    box = ((1, 8), (0, 9), (2, 10))
    properties = case((9, 9, 11), box, resampled, spacing)
    values = logits(4, *resampled)
    arguments = (properties, geometry(forward), configuration(*target))

    after = resampled_as_nnunet_does(values, properties.shape_after_crop, separate)
    whole = np.zeros((4, 9, 9, 11))
    whole[0] = 1
    inside = tuple(slice(low, high) for low, high in box)
    whole[(slice(None), *inside)] = softmax(after, axis=0)
    back = geometry(forward).transpose_backward
    whole = whole.transpose(0, *(axis + 1 for axis in back))

    found = logits_to_probabilities(values, *arguments, FOUR)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, atol=2e-6)
    before = values.clone()
    label = logits_to_label_map(values, *arguments, FOUR)
    assert torch.equal(values, before)
    assert label.dtype == np.int16
    np.testing.assert_array_equal(label, whole.argmax(0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("steps", [(1,) * 12, (3, 1, 2, 9), (50,)])
def test_labels_of_parts_equal_labels_of_the_whole(name, forward, steps):
    """Rows come in parts of these sizes, each with the last row of the part before it."""
    spacing, target, resampled, _ = CASES[name]
    plans = geometry(forward)
    arguments = (case((9, 9, 11), ((1, 8), (0, 9), (2, 10)), resampled, spacing), plans, configuration(*target))
    values = logits(4, *resampled)
    along = plans.transpose_backward[0]

    def parts():
        done = 0
        for step in steps:
            stop = min(done + step, resampled[along])
            first = max(0, done - 1)
            if stop > done:
                part = values.narrow(along + 1, first, stop - first).clone()
                yield Outputs(Resampled(part, *arguments, first=first))
                part.fill_(torch.nan)  # not looked at any more
            done = stop

    found = export_rows([parts()], FOUR).label
    np.testing.assert_array_equal(found, logits_to_label_map(values, *arguments, FOUR))


def test_missing_rows_are_told():
    place = (case((8, 4, 4), ((0, 8), (0, 4), (0, 4)), (6, 4, 4), (1, 1, 1)), geometry(), configuration(1.5, 1, 1))
    with pytest.raises(ValueError, match="some of the rows only"):
        export_rows([iter([Outputs(Resampled(logits(4, 4, 4, 4), *place, first=0))])], FOUR)


def test_members_whose_rows_come_in_other_parts_take_turns():
    """Grids, axes and sizes of parts differ; everything that is wanted equals what whole outputs give."""
    box = ((0, 6), (1, 8), (0, 9))
    turned = case((9, 6, 8), ((0, 9), (0, 6), (1, 8)), (5, 4, 6), (1, 1, 1))
    places = [
        (case((6, 8, 9), box, (6, 7, 9), (1, 1, 1)), geometry(), configuration(1, 1, 1)),
        (turned, geometry((2, 0, 1)), configuration(1.5, 1.5, 1.2)),
    ]
    values = [logits(4, 6, 7, 9), logits(4, 5, 4, 6, seed=1)]
    activated = [value.softmax(0) for value in values]
    want = {"label", "probabilities", "uncertainty"}
    asked = []

    def parts(index, step):
        along = places[index][1].transpose_backward[0]
        size = values[index].shape[along + 1]
        for start in range(0, size, step):
            asked.append(index)
            first = max(0, start - 1)
            both = [
                whole.narrow(along + 1, first, min(start + step, size) - first).clone()
                for whole in (values[index], activated[index])
            ]
            yield Outputs(*(Resampled(part, *places[index], first=first) for part in both))
            for part in both:
                part.fill_(torch.nan)

    found = export_rows([parts(0, 1), parts(1, 2)], FOUR, want)
    whole = [Resampled(value, *place) for value, place in zip(values, places, strict=True)]
    np.testing.assert_array_equal(found.label, label_map(whole, FOUR))
    np.testing.assert_allclose(found.probabilities, probabilities(whole, FOUR), atol=1e-6)
    sure = [Resampled(value, *place) for value, place in zip(activated, places, strict=True)]
    np.testing.assert_allclose(found.uncertainty, uncertainty(sure, FOUR), atol=1e-6)
    assert asked != sorted(asked), "they take turns"


def test_regions_are_thresholded_and_painted():
    properties = case((8, 9, 10), ((1, 7), (0, 9), (2, 10)), (5, 8, 9), (1.2, 1.0, 1.0))
    values = logits(3, 5, 8, 9)
    arguments = (properties, geometry(), configuration(1.4, 1.1, 0.9))
    after = resampled_as_nnunet_does(values, (6, 9, 8), None)
    painted = np.zeros((6, 9, 8), dtype=int)
    for index in range(3):
        painted[after[index] > 0] = index + 1
    whole = np.zeros((8, 9, 10), dtype=int)
    whole[1:7, 0:9, 2:10] = painted
    np.testing.assert_array_equal(logits_to_label_map(values, *arguments, REGIONS), whole)
    found = logits_to_probabilities(values, *arguments, REGIONS)
    np.testing.assert_allclose(found[:, 1:7, 0:9, 2:10], expit(after), atol=2e-6)
    assert found[:, 0].max() == 0, "regions have no background"


def test_members_are_averaged_as_probabilities_on_the_original_grid():
    box = ((0, 6), (1, 8), (0, 9))
    one = Resampled(logits(4, 6, 7, 9), case((6, 8, 9), box, (6, 7, 9), (1, 1, 1)), geometry(), configuration(1, 1, 1))
    turned = case((9, 6, 8), ((0, 9), (0, 6), (1, 8)), (5, 4, 6), (1, 1, 1))
    other = Resampled(logits(4, 5, 4, 6, seed=1), turned, geometry((2, 0, 1)), configuration(1.5, 1.5, 1.2))
    separately = [probabilities([member], FOUR) for member in (one, other)]
    mean = (separately[0] + separately[1]) / 2
    np.testing.assert_allclose(probabilities([one, other], FOUR), mean, atol=1e-6)
    np.testing.assert_array_equal(label_map([one, other], FOUR), mean.argmax(0))


def test_ensembles_of_regions_decide_at_one_half():
    place = (case((1, 1, 2), ((0, 1), (0, 1), (0, 2)), (1, 1, 2), (1, 1, 1)), geometry(), configuration(1, 1, 1))
    first = torch.tensor([[3.0, -0.1], [-3.0, -1.0], [-3.0, -1.0]]).reshape(3, 1, 1, 2)
    second = torch.tensor([[-1.0, 0.05], [-3.0, -1.0], [-3.0, -1.0]]).reshape(3, 1, 1, 2)
    members = [Resampled(first, *place), Resampled(second, *place)]
    # sigmoid(3) = .953 and sigmoid(-1) = .269: mean .611; sigmoid(-.1) = .475 and sigmoid(.05) = .512: mean .494
    np.testing.assert_array_equal(label_map(members, REGIONS), [[[1, 0]]])


def test_uncertainty_by_hand():
    place = (case((1, 1, 4), ((0, 1), (0, 1), (0, 3)), (1, 1, 3), (1, 1, 1)), geometry(), configuration(1, 1, 1))
    two = Labels(values={"a": (1,)})
    p = torch.tensor([1.0, 0.5, 0.75])
    found = uncertainty([Resampled(torch.stack([p, 1 - p]).reshape(2, 1, 1, 3), *place)], two)
    # -(3/4 log2 3/4 + 1/4 log2 1/4) = 0.811278
    np.testing.assert_allclose(found, [[[0, 1, 0.811278, 0]]], atol=1e-6)
    assert found.dtype == np.float32

    sure = [torch.tensor(values).reshape(2, 1, 1, 3) for values in ([1.0, 1, 1, 0, 0, 0], [0.0, 1, 1, 1, 0, 0])]
    disagreeing = uncertainty([Resampled(values, *place) for values in sure], two)
    np.testing.assert_allclose(disagreeing, [[[1, 0, 0, 0]]], atol=1e-6)

    p = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.75]])
    regions = uncertainty([Resampled(p.reshape(3, 1, 1, 3), *place)], REGIONS)
    np.testing.assert_allclose(regions, [[[0, 1, (0 + 1 + 0.811278) / 3, 0]]], atol=1e-6)


def test_uncertainty_of_many_classes_stays_within_its_bounds():
    many = Labels(values={str(value): (value,) for value in range(1, 12)})
    properties = case((9, 9, 9), ((0, 9), (0, 9), (0, 9)), (6, 7, 5), (1, 1, 1))
    place = (properties, geometry(), configuration(1.5, 1.3, 1.8))
    uniform = torch.full((12, 6, 7, 5), 1 / 12)
    np.testing.assert_allclose(uncertainty([Resampled(uniform, *place)], many), 1, atol=1e-5)
    mixed = uncertainty([Resampled(logits(12, 6, 7, 5).softmax(0), *place)], many)
    assert mixed.min() > 0
    assert mixed.max() < 1


class LargestNewTensor(TorchDispatchMode):
    """Notes the size of the largest memory that any torch operation makes; views make none."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.values = max(self.values, result.numel())
        return result


def peak_of_export(classes: int) -> tuple[int, int]:
    """Largest tensor and peak of numpy's memory of one export."""
    labels = Labels(values={str(value): (value,) for value in range(1, classes)})
    shape, resampled = (40, 48, 48), (20, 24, 24)
    properties = case(shape, tuple((0, size) for size in shape), resampled, (1, 1, 1))
    arguments = (logits(classes, *resampled), properties, geometry(), configuration(2, 2, 2), labels)
    with LargestNewTensor() as torch_memory:
        logits_to_label_map(*arguments)  # fills the cache of matrices, too
    tracemalloc.start()
    try:
        logits_to_label_map(*arguments)
        return torch_memory.values, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_peak_of_memory_does_not_grow_with_the_number_of_classes():
    few, many = peak_of_export(3), peak_of_export(30)
    assert few[0] == many[0] <= 40 * 48 * 48
    assert many[1] < 1.1 * few[1]
