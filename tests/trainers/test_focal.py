"""Focal loss, alone and beside Dice, by hand and against a voxel-by-voxel form."""

import numpy as np
import pytest
import torch
from autoseg.trainers.focal import FocalLoss, inverse_shares
from torch.nn import functional

from autoseg.labels import Labels
from autoseg.losses import SegmentationLoss

TWO = Labels(values={"a": (1,)})
THREE = Labels(values={"a": (1,), "b": (2,)})
REGIONS = Labels(
    values={"whole": (1, 2), "core": (2,)}, regions=True, paint_order=("whole", "core"), paint_values=(1, 2)
)


@pytest.mark.parametrize(
    ("gamma", "probability", "expected"), [(2, 0.5, 0.173287), (0, 0.5, 0.693147), (2, 0.9, 0.00105361)]
)
def test_numbers_of_the_card(gamma, probability, expected):
    odds = torch.tensor(probability / (1 - probability)).log()
    logits = torch.stack([odds, torch.zeros(())]).reshape(1, 2, 1)
    target = torch.zeros(1, 1, dtype=torch.long)
    assert FocalLoss(TWO, gamma=gamma)(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.25, 1.75])])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("ignoring", [False, True])
def test_regions_voxel_by_voxel(ignoring, partial, weights):
    random = torch.Generator().manual_seed(0)
    labels = REGIONS.model_copy(update={"ignore": (9,)}) if ignoring else REGIONS
    logits = torch.randn(2, 2, 4, 5, generator=random)
    target = torch.randint(0, 4 if ignoring else 3, (2, 4, 5), generator=random)
    annotated = torch.tensor([[True, True, True], [True, False, True]]) if partial else None
    found = []
    for sample in range(2):
        for region, values in enumerate([(1, 2), (2,)]):
            if partial and not all(annotated[sample, value] for value in values):
                continue
            for score, value in zip(logits[sample, region].flatten(), target[sample].flatten(), strict=True):
                if value != 3:
                    p = score.double().sigmoid() if int(value) in values else 1 - score.double().sigmoid()
                    found.append(-((1 - p) ** 2) * p.log() * (1.0 if weights is None else weights[region]))
    loss = FocalLoss(labels, class_weights=weights)(logits, target.short(), annotated)
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-5)


def test_voxels_outside_are_background_and_ignored_ones_count_for_nothing():
    labels = THREE.model_copy(update={"ignore": (9,)})
    logits = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    target = logits.argmax(1).short()
    target[:, 3:], target[:, 0] = labels.ignore_index, -1
    upper = FocalLoss(THREE)(logits[:, :, :3], target[:, :3].clamp(min=0))
    assert FocalLoss(labels)(logits, target).item() == pytest.approx(upper.item(), rel=1e-6)


def test_classes_without_annotation_are_background():
    logits = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randint(0, 3, (1, 6, 6), generator=torch.Generator().manual_seed(1))
    got = FocalLoss(THREE)(logits, target, torch.tensor([[True, True, False]]))
    p = logits.detach().softmax(1)
    two = FocalLoss(TWO)(torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1).log(), target * (target == 1))
    assert got.item() == pytest.approx(two.item(), rel=1e-5)
    got.backward()
    assert logits.grad.isfinite().all()


def test_weights_are_inverse_shares_with_mean_one():
    shares = inverse_shares(np.array([800, 150, 50]), THREE)  # as 3, 16 and 48
    assert shares.tolist() == pytest.approx([9 / 67, 48 / 67, 144 / 67])
    assert inverse_shares(np.array([60, 20, 0]), THREE).tolist() == pytest.approx([0.5, 1.5, 1.0])
    assert inverse_shares(np.array([900, 60, 20]), REGIONS).tolist() == pytest.approx([0.4, 1.6])


def dice_of(logits, target):
    """The card's: 1 - the mean over classes, background included, sums over the batch."""
    p, t = logits.softmax(1), functional.one_hot(target.long().clamp(min=0), logits.shape[1]).movedim(-1, 1)
    axes = (0, *range(2, logits.ndim))
    return 1 - ((2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)).mean()


@pytest.fixture
def sample(build):
    batch = build("focal").build_streams()["labelled"].batch(0)
    logits = torch.randn(
        len(batch.segmentation), 3, *batch.segmentation.shape[1:], generator=torch.Generator().manual_seed(0)
    )
    return logits, batch.segmentation


def test_dice_and_focal_loss_or_the_focal_loss_alone(build, sample):
    trainer, (logits, target) = build("focal", optimizer="sgd"), sample
    trainer._dice.batch_dice = True
    focal = FocalLoss(trainer.labels)(logits, target)
    both = trainer.loss(logits, target)
    assert 1 + both.item() == pytest.approx((dice_of(logits, target) + focal).item(), abs=1e-5)
    alone = build("focal", dice_weight=0.0)
    assert alone.loss(logits, target).item() == pytest.approx(focal.item(), rel=1e-6)
    assert build("focal", dice_weight=0.0, gamma=3.0).loss(logits, target) < 0.9 * focal


def test_without_gamma_it_is_the_common_loss(build, sample):
    trainer, (logits, target) = build("focal", gamma=0.0, dice_background=False, cross_entropy_weight=0.5), sample
    batch_dice = trainer.context.configuration.batch_dice
    common = SegmentationLoss(trainer.labels, batch_dice=batch_dice, ce_weight=0.5)
    assert trainer.loss(logits, target).item() == pytest.approx(common(logits, target).item(), abs=1e-6)


def test_inverse_weights_are_those_of_the_training_cases(build):
    trainer = build("focal", class_weights="inverse")
    counts = np.zeros(3)
    for case in trainer.context.training_cases:
        label = trainer.context.store.read(case).label()
        counts += [(label <= 0).sum(), (label == 1).sum(), (label == 2).sum()]
    weights = trainer._focal.class_weights
    assert (weights * torch.tensor(counts)).tolist() == pytest.approx([weights[1].item() * counts[1]] * 3, rel=1e-5)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights[0] < 0.1


def test_it_trains_a_gated_network(build):
    trainer = build("focal", architecture="att_res_unet", class_weights="inverse")
    batches = {"labelled": trainer.build_streams()["labelled"].batch(0)}
    ((name, loss),) = trainer.training_step(batches, 0.0)
    loss.backward()
    assert name == "network"
    for part, parameter in trainer.modules["network"].named_parameters():
        if part.startswith(("encoder", "gates", "heads.0")):
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any() or part.endswith("bias")  # a norm takes biases away
