"""The checks of the card "bcp"."""

import math

import numpy as np
import pytest
import torch
from autoseg.trainers.bidirectional_copy_paste import Part, masked_loss, paste, random_box
from torch.overrides import TorchFunctionMode

from autoseg.errors import UserError
from autoseg.inference.postprocessing import keep_largest
from autoseg.labels import labels_from_description
from autoseg.training.observing import decide

TWO = labels_from_description({"labels": {"background": 0, "organ": 1}})
MASK = torch.tensor([True, True, False, False])
LOGITS = torch.tensor([[[2.0, 0, 1, 0], [0, 2.0, 0, 1]]])
BACKGROUND, INSIDE = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[1, 1, 0, 0]])


def step_of(trainer, progress, step=0):
    batches = {name: stream.batch(step) for name, stream in trainer.build_streams().items()}
    ((_, loss),) = trainer.training_step(batches, progress)
    return batches, loss


@pytest.mark.parametrize(
    ("size", "sides"), [((112, 112, 80), (74, 74, 53)), ((256, 256), (170, 170)), ((96, 96, 96), (64, 64, 64))]
)
def test_the_box_has_the_published_size(size, sides):
    mask = random_box(size, 2 / 3, np.random.default_rng(0))
    assert (~mask).sum() == math.prod(sides)
    for axis, side in enumerate(sides):
        others = tuple(a for a in range(len(size)) if a != axis)
        assert (~mask).any(dim=others[0]).flatten().any()
        assert np.asarray(~mask).any(others).sum() == side


def test_a_box_as_large_as_the_patch_does_not_fail():
    assert not random_box((4, 5), 1.0, np.random.default_rng(0)).any()
    assert random_box((4, 5), 0.0, np.random.default_rng(0)).all()


def test_images_and_labels_are_mixed_alike_and_exactly():
    mask = random_box((8, 8), 0.5, np.random.default_rng(1))
    labels = torch.randint(0, 5, (2, 3, 8, 8))
    mixed = paste(mask, labels[0], labels[1])
    assert torch.equal(paste(mask, labels[0].float()[:, None], labels[1].float()[:, None])[:, 0].long(), mixed)
    assert torch.equal(mixed[:, mask], labels[0][:, mask])
    assert torch.equal(mixed[:, ~mask], labels[1][:, ~mask])


def test_the_hand_example_of_the_card():
    first = masked_loss(LOGITS, BACKGROUND, MASK[None], TWO)
    second = masked_loss(LOGITS, INSIDE, ~MASK[None], TWO)
    assert first.item() == pytest.approx((0.119202 + 0.126928) / 2, abs=2e-6)
    assert second.item() == pytest.approx((0.666661 + 0.813262) / 2, abs=2e-6)


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 0.5), 0.493046), ((0.5, 1.0), 0.801494)])
def test_the_mixed_loss_of_the_card(build, weights, expected):
    trainer = build("bidirectional_copy_paste")
    trainer.labels = TWO
    parts = [Part(torch.zeros(1), label, weight) for label, weight in zip((BACKGROUND, INSIDE), weights, strict=True)]
    assert trainer.mixed_loss([LOGITS], MASK, *parts).item() == pytest.approx(expected, abs=2e-6)


def test_ignored_voxels_do_not_count():
    labels = labels_from_description({"labels": {"background": 0, "organ": 1, "ignore": 2}})
    ignored = torch.tensor([[0, 1, 2, 2]])
    assert masked_loss(LOGITS, ignored, torch.ones(1, 4, dtype=torch.bool), labels) == masked_loss(
        LOGITS, BACKGROUND, MASK[None], TWO
    )


def test_regions_are_compared_by_sigmoid():
    labels = labels_from_description({"labels": {"background": 0, "whole": [1, 2], "core": 2}})
    logits = torch.zeros(1, 2, 4)
    loss = masked_loss(logits, torch.tensor([[0, 1, 2, 2]]), torch.ones(1, 4, dtype=torch.bool), labels)
    dice = 1 - (2 * 1.5 / 5 + 2 * 1.0 / 4) / 2  # overlaps 1.5 and 1 of sums 2 + 3 and 2 + 2
    assert loss.item() == pytest.approx((dice + math.log(2)) / 2, abs=1e-5)


def test_in_2d_dice_is_that_of_the_batch_with_squares():
    even = torch.zeros(2, 2, 1, 2)  # every probability is 1/2
    label = torch.tensor([[[0, 0]], [[0, 1]]])  # one sample without the organ
    loss = masked_loss(even, label, torch.ones(1, 1, 2, dtype=torch.bool), TWO)
    background, organ = 2 * 1.5 / (4 / 4 + 3), 2 * 0.5 / (4 / 4 + 1)
    assert loss.item() == pytest.approx((1 - (background + organ) / 2 + math.log(2)) / 2, abs=1e-6)
    missing = masked_loss(even, torch.zeros_like(label), torch.ones(1, 1, 2, dtype=torch.bool), TWO)
    assert missing.item() == pytest.approx((1 - (2 * 2 / (1 + 4) + 0) / 2 + math.log(2)) / 2, abs=1e-6)


def test_with_an_empty_box_the_loss_is_the_plain_one(build):
    trainer = build("bidirectional_copy_paste", box=0.0, deep_supervision=False, pseudo_weight=0.0)
    batches, loss = step_of(trainer, progress=1.0)
    labelled, network = batches["labelled"], trainer.modules["network"]
    half = len(labelled.image) // 2
    everywhere = torch.ones(1, *labelled.image.shape[2:], dtype=torch.bool)
    plain = masked_loss(network(labelled.image)[:half], labelled.segmentation[:half], everywhere, trainer.labels)
    torch.testing.assert_close(loss, plain)


def test_pseudo_labels_of_weight_zero_give_no_gradient(build):
    trainer = build("bidirectional_copy_paste", pseudo_weight=0.0)
    logits = torch.randn(1, 3, 6, 6, 6, requires_grad=True)
    mask = random_box((6, 6, 6), 2 / 3, np.random.default_rng(0))
    labels = torch.randint(0, 3, (2, 1, 6, 6, 6))
    trainer.mixed_loss([logits], mask, Part(logits, labels[0], 1.0), Part(logits, labels[1], 0.0)).backward()
    assert (logits.grad[:, :, ~mask] == 0).all()
    assert (logits.grad[:, :, mask] != 0).any()


def test_with_decay_zero_the_teacher_is_the_student_and_without_gradient(build):
    trainer = build("bidirectional_copy_paste", teacher_decay=0.0)
    network, teacher = trainer.modules["network"], trainer.modules["teacher"]
    before = [parameter.clone() for parameter in teacher.parameters()]
    _, loss = step_of(trainer, progress=0.9)
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(0.1 * (parameter.grad if parameter.grad is not None else 0))
    trainer.after_step(0.9)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), teacher.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_a_copy_until_the_student_trains_itself(build):
    trainer = build("bidirectional_copy_paste", pretrain_share=0.25)
    assert trainer.decay(0.24) == 0
    assert trainer.decay(0.25) == 0.99


def test_only_the_largest_component_of_a_class_is_a_pseudo_label(build):
    trainer = build("bidirectional_copy_paste")
    label = torch.zeros(1, 4, 4, 8, dtype=torch.long)
    label[0, 0, 0, :3] = 1
    label[0, 3, 3, :2] = 1  # smaller
    label[0, 3, 3, 6:] = 2
    logits = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    guessed = trainer.pseudo_labels(logits)
    assert guessed[0, 0, 0, :3].tolist() == [1, 1, 1]
    assert (guessed[0, 3, 3, :2] == 0).all()
    assert (guessed[0, 3, 3, 6:] == 2).all()
    assert torch.equal(build("bidirectional_copy_paste", largest_component=False).pseudo_labels(logits).long(), label)
    assert trainer.pseudo_labels(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 8)  # nothing found, 2D


class Moved(TorchFunctionMode):
    """Keeps the types of the tensors that go to the CPU."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "organ": 1, "tumour": 2},
        {"background": 0, "whole": [1, 2], "core": 2},
        {"background": 7, "core": 9, "whole": [3, 9]},
    ],
)
@pytest.mark.parametrize("largest", [True, False])
def test_classes_are_decided_where_the_logits_are(build, labels, largest):
    """Only label maps of a byte per voxel leave the device; they are those of the whole logits on the CPU."""
    trainer = build("bidirectional_copy_paste", largest_component=largest)
    trainer.labels = labels_from_description({"labels": labels})
    logits = torch.randn(2, trainer.labels.num_outputs, 5, 6, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Moved() as moved:
        found = trainer.pseudo_labels(logits)
    assert set(moved.types) == {torch.uint8}
    for label, sample in zip(found.numpy(), logits.float(), strict=True):
        expected = decide(sample, trainer.labels)
        for value in range(1, len(trainer.labels.foreground_values) + 1) if largest else ():
            expected = keep_largest(expected, (value,))
        assert (label == expected).all()


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_the_network_sees_only_mixed_patches(build, progress):
    """A patch coded as its own label comes back as the mixture of the labels."""
    trainer = build("bidirectional_copy_paste", largest_component=False, batch_size=4)
    batches = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    seen = []
    trainer.modules["network"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    list(trainer.training_step(batches, progress))
    labelled, unlabelled = batches["labelled"].image, batches["unlabelled"].image
    inward = unlabelled[:2] if progress else labelled[2:]
    outward = unlabelled[2:] if progress else labelled[2:]
    (mixed,) = seen
    mask = (mixed[:2] == labelled[:2]).all(0).all(0)
    sides = [int(2 / 3 * size) for size in labelled.shape[2:]]
    assert (~mask).sum() == math.prod(sides)
    assert torch.equal(mixed[:2], torch.where(mask, labelled[:2], inward))
    assert torch.equal(mixed[2:], torch.where(mask, outward, labelled[2:] if progress else labelled[:2]))


def test_odd_batches_are_made_even(build):
    assert build("bidirectional_copy_paste", batch_size=3).stream_settings().batch_size == 4


def test_settings_of_consistency_are_refused_since_they_would_do_nothing(build):
    with pytest.raises(UserError, match="consistency"):
        build("bidirectional_copy_paste", consistency=1.0)
