from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.batches import PatchStream, StreamSettings
from autoseg.batches.augmentation.pipeline import apply_warp
from autoseg.batches.cutting import Box, copy_box
from autoseg.errors import CaseError, UserError
from autoseg.labels import Labels


def stream(store, labels, patch=(16, 20, 12), batch=3, *, seed=5, **changes):
    others = {key: changes.pop(key) for key in ("use_mask", "previous_stage", "after", "name") if key in changes}
    return PatchStream(
        store, store.cases, labels, StreamSettings(patch, batch, **changes), **({"name": "train"} | others), seed=seed
    )


def equal(first, second):
    return torch.equal(first.image, second.image) and torch.equal(first.segmentation, second.segmentation)


@pytest.mark.parametrize("level", ["full", "light", "none"])
@pytest.mark.parametrize("patch", [(16, 20, 12), (24, 20), (6, 32, 32), (60, 60, 60)])
def test_shapes_types_and_values(memory_store, labels, patch, level):
    batches = stream(memory_store, labels, patch, augmentation=level)
    for step in range(6):
        batch = batches.batch(step)
        assert batch.image.shape == (3, 1, *patch)
        assert batch.image.dtype == torch.float32
        assert torch.isfinite(batch.image).all()
        assert batch.segmentation.shape == (3, *patch)
        assert batch.segmentation.dtype == torch.int16
        assert set(batch.segmentation.unique().tolist()) <= {0, 1, 2}
        assert set(batch.cases) <= set(memory_store.cases)
        assert batch.cases == batches.cases_of(step)
        assert (batch.annotated, batch.previous, batch.step) == (None, None, step)


def test_a_batch_depends_on_seed_name_and_step_alone(memory_store, labels):
    one, two = stream(memory_store, labels), stream(memory_store, labels)
    later = [one.batch(step) for step in (3, 1, 2)]
    assert equal(later[1], two.batch(1))
    assert equal(later[0], two.batch(3))
    assert not equal(later[0], later[1])
    assert not equal(later[0], stream(memory_store, labels, seed=6).batch(3))
    assert not equal(later[0], stream(memory_store, labels, name="other").batch(3))


def test_unaugmented_patches_lie_in_the_image(memory_store, labels):
    batch = stream(memory_store, labels, augmentation="none", batch=8).cut(0)
    for image, segmentation, case in zip(batch.image, batch.segmentation, batch.cases, strict=True):
        stored = memory_store.read(case)
        first = image[0, 0, 0, 0].item()
        ((z, y, x),) = np.argwhere(stored.data[0] == np.float32(first))
        part = (slice(z, z + 16), slice(y, y + 20), slice(x, x + 12))
        if image.shape[1:] == stored.data[0][part].shape:
            assert np.array_equal(image[0], stored.data[0][part])
            assert np.array_equal(segmentation, stored.labels[part])


def test_cropped_samples_are_mirrored_pieces_of_the_image(memory_store, labels):
    """With intensities untouched, a cropped patch is found in the image by undoing its flips."""
    batches, seen = stream(memory_store, labels, batch=6), 0
    for step in range(6):
        cut = batches.cut(step)
        for position, drawn in enumerate(cut.parameters):
            if drawn.warp is not None:
                continue
            stored = memory_store.read(cut.cases[position])
            axes = [axis for axis, flip in enumerate(drawn.flips) if flip]
            image = np.flip(cut.image[position, 0].numpy(), axes)
            labelled = np.flip(cut.segmentation[position].numpy(), axes)
            inside = np.argwhere(image != 0)[0]
            found = np.argwhere(stored.data[0] == image[tuple(inside)])[0] - inside
            low = np.maximum(found, 0)
            high = np.minimum(found + image.shape, stored.shape)
            whole = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            piece = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, found, strict=True))
            assert np.array_equal(image[piece], stored.data[0][whole])
            assert np.array_equal(labelled[piece], stored.labels[whole])
            outside = np.ones(image.shape, dtype=bool)
            outside[piece] = False
            assert (image[outside] == 0).all()
            assert (labelled[outside] == -1).all()
            seen += len(axes) > 0
    assert seen > 10


def test_forced_samples_hold_foreground(memory_store, labels):
    batches = stream(memory_store, labels, batch=3, augmentation="none")
    for step in range(20):
        assert (batches.cut(step).segmentation[2] > 0).any()


def test_slices_come_from_one_slice(build_case, build_store, labels):
    case = build_case(shape=(9, 30, 30))
    case.data[0] = np.arange(9)[:, None, None] + 1
    batches = stream(build_store({"a": case}), labels, (24, 24), batch=8, augmentation="none")
    found = [set(image.unique().tolist()) - {0.0} for image in batches.batch(0).image]  # 0 beyond the border
    assert all(len(values) == 1 for values in found)
    assert len(set.union(*found)) > 2


def test_zero_outside_the_mask(memory_store, labels):
    batches = stream(memory_store, labels, use_mask=(True,), augmentation="light")
    for step in range(5):
        cut = batches.cut(step)
        outside = cut.segmentation < 0
        image = batches.augment(cut, step).image[:, 0]
        assert (image[outside] == 0).all()
        assert (image[~outside] != 0).float().mean() > 0.99


def test_warped_samples_agree_with_a_constant_image(build_case, build_store, labels):
    """Geometry end to end: where the warped segmentation is inside, an image of ones stays one."""
    case = build_case(shape=(60, 60, 60))
    case.data[:] = 1
    case.labels[:] = 0
    case.locations = {}
    batches, warped = stream(build_store({"a": case}), labels, (20, 24, 16), batch=4), 0
    for step in range(8):
        cut = batches.cut(step)
        warped += sum(drawn.warp is not None for drawn in cut.parameters)
        apply_warp(cut)
        assert (cut.image[:, 0][cut.segmentation < 0] <= 0.5001).all()
        assert (cut.image[:, 0][cut.segmentation == 0] >= 0.4999).all()
    assert warped > 5


def test_partial_annotations(build_case, build_store, labels):
    store = build_store({"a": build_case(annotated=(2,))})
    batch = stream(store, labels).batch(0)
    assert batch.annotated.tolist() == [[True, False, True]] * 3
    mixed = build_store({"a": build_case(annotated=(1,)), "b": build_case()})
    batch = stream(mixed, labels, batch=8).batch(0)
    expected = {"a": [True, True, False], "b": [True, True, True]}
    assert batch.annotated.tolist() == [expected[case] for case in batch.cases]


def test_unforced_samples_are_annotated_with_an_ignore_label(build_case, build_store):
    case = build_case(shape=(60, 60, 60))
    case.labels[:] = 2  # ignored
    case.labels[50:53, 50:53, 50:53] = 1
    case.locations = {1: np.argwhere(case.labels == 1), -1: np.argwhere(case.labels == 1)}
    partly = Labels(values={"first": (1,)}, ignore=(9,))
    batches = stream(build_store({"a": case}), partly, (12, 12, 12), augmentation="none")
    for step in range(5):
        segmentation = batches.batch(step).segmentation
        assert (segmentation == 1).flatten(1).any(1).all()
        assert (segmentation == 2).any()


def test_the_previous_stage_follows_the_segmentation(memory_store, labels):
    for case in memory_store.cases:
        stored = memory_store.read(case)
        stored.stages["low"] = np.where(stored.labels > 0, stored.labels, 0)
    batches = stream(memory_store, labels, previous_stage="low", batch=4)
    same = total = 0
    for step in range(6):
        batch = batches.batch(step)
        assert batch.previous.dtype == torch.int16
        assert set(batch.previous.unique().tolist()) <= {0, 1, 2}
        for previous, segmentation in zip(batch.previous, batch.segmentation, strict=True):
            same += torch.equal(previous, segmentation)
            total += 1
    assert total * 0.35 < same < total  # most are intact, some are damaged
    exact = stream(memory_store, labels, previous_stage="low", augmentation="light").batch(0)
    assert torch.equal(exact.previous, exact.segmentation)


@pytest.mark.parametrize("level", ["light", "full"])
def test_computed_channels_are_moved_but_keep_their_values(build_case, build_store, labels, level):
    """A copy of the image as a second channel: where it is kept it equals the first without intensity changes."""
    case = build_case()
    case.data = np.concatenate([case.data[:1]] * 2)
    store, changed = build_store({"a": case}), 0
    plain = stream(store, labels, augmentation=level)
    kept = stream(store, labels, augmentation=level, computed_channels=(1,))
    for step in range(6):
        first, second = plain.batch(step), kept.batch(step)
        moved = plain.cut(step)
        apply_warp(moved)
        assert torch.equal(second.image[:, 0], first.image[:, 0])
        assert torch.equal(second.image[:, 1], moved.image[:, 1])
        changed += not torch.equal(first.image[:, 1], moved.image[:, 1])
    assert changed


def test_functions_after_augmentation(memory_store, labels):
    batch = stream(memory_store, labels, after=(lambda b: replace(b, image=b.image * 0 + b.step),)).batch(4)
    assert (batch.image == 4).all()


def test_a_failing_case_is_named(memory_store, labels):
    def broken(slices):
        raise OSError("disk on fire")

    for case in memory_store.cases:
        memory_store.read(case).label = broken
    with pytest.raises(CaseError, match=r"case case_\d, reading a patch: disk on fire"):
        stream(memory_store, labels).cut(0)


def test_no_cases_is_a_user_error(memory_store, labels):
    with pytest.raises(UserError, match="'train' has no cases"):
        PatchStream(memory_store, (), labels, StreamSettings((8, 8), 1), seed=0, name="train")


def test_copy_box_by_hand():
    volume = np.arange(8).reshape(1, 2, 4)
    target = np.empty((1, 4, 3))
    copy_box(lambda s: volume[s], Box((0, -1, 2), (1, 4, 3)), volume.shape, target, outside=-1)
    assert target[0].tolist() == [[-1, -1, -1], [2, 3, -1], [6, 7, -1], [-1, -1, -1]]
    copy_box(
        lambda s: volume[s], Box((0, 0, 0), (1, 4, 3)), volume.shape, target, outside=-1, flips=(False, True, True)
    )
    assert target[0].tolist() == [[-1, -1, -1], [-1, -1, -1], [6, 5, 4], [2, 1, 0]]
    copy_box(lambda s: volume[s], Box((0, 9, 0), (1, 4, 3)), volume.shape, target, outside=-1)
    assert (target == -1).all()
    limited = Box((0, 0, 0), (1, 4, 3), ((0, 1), (1, 2), (0, 2)))
    copy_box(lambda s: volume[s], limited, volume.shape, target, outside=-1)
    assert target[0].tolist() == [[-1, -1, -1], [4, 5, -1], [-1, -1, -1], [-1, -1, -1]]
