import math

import pytest
import torch
from torch.nn import functional

from autoseg.labels import Labels
from autoseg.losses import SegmentationLoss, cross_entropy_loss, dice_loss

TWO = Labels(values={"a": (1,)})
THREE = Labels(values={"a": (1,), "b": (2,)})
IGNORING = Labels(values={"a": (1,), "b": (2,)}, ignore=(9,))
REGIONS = Labels(
    values={"whole": (1, 2), "core": (2,)}, regions=True, paint_order=("whole", "core"), paint_values=(1, 2)
)
REGIONS_IGNORING = REGIONS.model_copy(update={"ignore": (9,)})


@pytest.fixture
def card():
    logits = torch.tensor([[[[2.0, 0], [0, -1]], [[0, 2], [0, 1]]]])
    return logits, torch.tensor([[[0, 1], [1, 0]]])


@pytest.fixture
def card_of_two(card):
    logits, target = card
    return torch.cat([logits, torch.zeros_like(logits)]), torch.cat([target, torch.zeros_like(target)])


def test_numbers_of_the_card(card, card_of_two):
    assert dice_loss(*card).item() == pytest.approx(-0.630387, abs=1e-6)
    assert cross_entropy_loss(*card).item() == pytest.approx(0.768483, abs=1e-6)
    assert SegmentationLoss(TWO, batch_dice=False)(*card).item() == pytest.approx(0.138096, abs=1e-6)
    assert SegmentationLoss(TWO, batch_dice=False)(*card_of_two).item() == pytest.approx(0.415619, abs=1e-6)
    assert SegmentationLoss(TWO, batch_dice=True)(*card_of_two).item() == pytest.approx(0.298016, abs=1e-6)


def test_weights_of_the_terms(card):
    assert SegmentationLoss(TWO, batch_dice=False, dice_weight=0)(*card).item() == pytest.approx(0.768483, abs=1e-6)
    loss = SegmentationLoss(TWO, batch_dice=False, dice_weight=2, ce_weight=0)
    assert loss(*card).item() == pytest.approx(2 * -0.630387, abs=1e-6)


def test_a_perfect_prediction_reaches_minus_one():
    target = torch.randint(0, 3, (2, 6, 7, 8), generator=torch.Generator().manual_seed(0))
    logits = 50 * functional.one_hot(target, 3).movedim(-1, 1).float()
    assert SegmentationLoss(THREE, batch_dice=True)(logits, target).item() == pytest.approx(-1, abs=1e-4)


def naive(logits, target, labels, *, batch_dice, annotated=None, squared=False, background=False, smooth=1e-5):
    """One-hot reference in float64, voxel by voxel where annotations are partial."""
    regions, ignored = labels.regions, labels.ignore_index
    valid = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    target = torch.where(valid, target, 0)
    batch, outputs = logits.shape[:2]
    known = torch.ones(batch, len(labels.foreground_values) + 1, dtype=torch.bool) if annotated is None else annotated
    if regions:
        hot = torch.stack([sum((target == v) for v in m) > 0 for m in labels.members], 1).double()
        weights = torch.tensor([[all(k[v] for v in m) for m in labels.members] for k in known]).double()
        probability = torch.sigmoid(logits)
        entropy = functional.binary_cross_entropy_with_logits(logits, hot, reduction="none")
        spread = weights.view(batch, outputs, *[1] * (logits.ndim - 2)) * valid[:, None]
        entropy = (entropy * spread).sum() / spread.sum().clamp_min(1)
    else:
        probability = torch.softmax(logits, 1)
        merged = []
        for one, flags in zip(probability, known, strict=True):
            first = one[:1] + sum(one[k : k + 1] for k in range(outputs) if not flags[k])
            merged.append(torch.cat([first, one[1:] * flags[1:].view(-1, *[1] * (one.ndim - 1))]))
        probability = torch.stack(merged)
        hot = functional.one_hot(target, outputs).movedim(-1, 1).double()
        entropy = -(torch.log((probability * hot).sum(1)) * valid).sum() / valid.sum().clamp_min(1)
        first = 0 if background else 1
        probability, hot, weights = probability[:, first:], hot[:, first:], known[:, first:].double()
    probability, hot = probability * valid[:, None], hot * valid[:, None]
    terms = [x.flatten(2).sum(2) for x in (probability * hot, probability**2 if squared else probability, hot)]
    if batch_dice:
        terms = [(x * weights).sum(0) for x in terms]
        weights = (weights.sum(0) > 0).double()
    intersection, predicted, reference = terms
    dice = (2 * intersection + smooth) / (predicted + reference + smooth).clamp_min(1e-8)
    return entropy - (dice * weights).sum() / weights.sum().clamp_min(1)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("labels", [THREE, IGNORING, REGIONS, REGIONS_IGNORING], ids=["three", "ign", "reg", "regign"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 3)])
def test_value_and_gradient_equal_the_naive_loss(labels, batch_dice, partial, shape):
    random = torch.Generator().manual_seed(len(shape))
    logits = torch.randn(3, labels.num_outputs, *shape, generator=random)
    highest = 3 if labels.ignore_index is None else 4
    target = torch.randint(0, highest, (3, *shape), generator=random)
    annotated = None
    if partial:
        annotated = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
        for one, hidden in ((1, 1), (2, 2)):
            target[one][target[one] == hidden] = 0
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = SegmentationLoss(labels, batch_dice=batch_dice)(ours, target.short(), annotated)
    expected = naive(theirs, target, labels, batch_dice=batch_dice, annotated=annotated)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "form", [{"squared": True}, {"background": True}, {"squared": True, "background": True, "smooth": 1.0}], ids=str
)
@pytest.mark.parametrize("labels", [THREE, IGNORING, REGIONS, REGIONS_IGNORING], ids=["three", "ign", "reg", "regign"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_other_forms_of_dice_equal_the_naive_loss(labels, batch_dice, partial, form):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, labels.num_outputs, 5, 6, generator=random)
    target = torch.randint(0, 3 if labels.ignore_index is None else 4, (3, 5, 6), generator=random)
    annotated = None
    if partial:
        annotated = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
        for one, hidden in ((1, 1), (2, 2)):
            target[one][target[one] == hidden] = 0
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = SegmentationLoss(labels, batch_dice=batch_dice, **form)(ours, target.short(), annotated)
    expected = naive(theirs, target, labels, batch_dice=batch_dice, annotated=annotated, **form)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("labels", [THREE, REGIONS], ids=["classes", "regions"])
def test_only_squared_dice_has_a_further_pass(labels, monkeypatch):
    passes = []
    monkeypatch.setattr("autoseg.losses.segmentation.squared_sums", lambda found, _: passes.append(1) or found.sum(2))
    logits, target = torch.zeros(1, labels.num_outputs, 8), torch.zeros(1, 8, dtype=torch.long)
    SegmentationLoss(labels, batch_dice=True)(logits, target)
    SegmentationLoss(labels, batch_dice=True, background=True, smooth=1.0)(logits, target)
    assert not passes
    SegmentationLoss(labels, batch_dice=True, squared=True)(logits, target)
    assert passes


@pytest.mark.parametrize("labels", [IGNORING, REGIONS_IGNORING], ids=["classes", "regions"])
def test_ignored_voxels_get_no_gradient_and_nothing_annotated_is_finite(labels):
    logits = torch.randn(2, labels.num_outputs, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4), 3)
    target[0, :2] = 1
    SegmentationLoss(labels, batch_dice=False)(logits, target).backward()
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0, :, :2] != 0).all()
    nothing = torch.full((2, 4, 4), 3)
    only_entropy = SegmentationLoss(labels, batch_dice=False, dice_weight=0)
    logits.grad = None
    loss = only_entropy(logits, nothing)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("labels", [THREE, REGIONS], ids=["classes", "regions"])
def test_half_precision_logits_are_summed_in_float32(labels):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, labels.num_outputs, 40, 40, 40, generator=random).bfloat16()
    target = torch.randint(0, 3, (1, 40, 40, 40), generator=random)
    loss = SegmentationLoss(labels, batch_dice=False)
    half = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    assert value.item() == pytest.approx(loss(logits.float(), target).item(), abs=1e-6)


def test_regions_by_hand():
    # one voxel, both regions at logit 0, target 1: whole 1, core 0
    loss = SegmentationLoss(REGIONS, batch_dice=False)
    value = loss(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.int16))
    entropy = torch.log(torch.tensor(2.0)).item()
    dice = ((2 * 0.5 + 1e-5) / (1.5 + 1e-5) + 1e-5 / (0.5 + 1e-5)) / 2
    assert value.item() == pytest.approx(entropy - dice, abs=1e-6)


def test_wrong_shapes_are_told():
    with pytest.raises(ValueError, match=r"logits \(1, 3, 4, 4\) need a target \(B, \*S\), got \(1, 1, 4, 4\)"):
        SegmentationLoss(THREE, batch_dice=False)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))


def test_the_target_is_not_changed():
    target = torch.tensor([[[3, 0], [1, -1]]])
    for labels in (IGNORING, REGIONS_IGNORING):
        SegmentationLoss(labels, batch_dice=False)(torch.zeros(1, labels.num_outputs, 2, 2), target)
    assert target.tolist() == [[[3, 0], [1, -1]]]


def test_a_target_of_a_class_that_is_not_annotated_is_background():
    # one voxel, all logits 0, b annotated, a not: the background has probability 1/3 + 1/3, b has 1/3 and no voxel
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    annotated = torch.tensor([[True, False, True]])
    value = SegmentationLoss(THREE, batch_dice=False)(logits, torch.tensor([[[1]]], dtype=torch.int16), annotated)
    assert value.item() == pytest.approx(-math.log(2 / 3) - 1e-5 / (1 / 3 + 1e-5), abs=1e-6)
    value.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("labels", [THREE, IGNORING, REGIONS, REGIONS_IGNORING], ids=["three", "ign", "reg", "regign"])
def test_targets_that_are_not_annotated_change_nothing_else(labels):
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2, labels.num_outputs, 6, 7, generator=random)
    target = torch.randint(-1, 3 if labels.ignore_index is None else 4, (2, 6, 7), generator=random)
    annotated = torch.tensor([[True, True, False], [True, True, True]])
    cleaned = target.clone()
    cleaned[0][cleaned[0] == 2] = 0
    loss = SegmentationLoss(labels, batch_dice=True)
    assert torch.isfinite(loss(logits, target, annotated))
    assert torch.equal(loss(logits, target, annotated), loss(logits, cleaned, annotated))


def test_a_region_takes_values_that_are_not_annotated_as_background():
    # one voxel at logit 0; "core" (value 2) is annotated, value 1 is not: "whole" is left out, "core" has no voxel
    annotated = torch.tensor([[True, False, True]])
    value = SegmentationLoss(REGIONS, batch_dice=False)(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1).long(), annotated)
    assert value.item() == pytest.approx(math.log(2) - 1e-5 / (0.5 + 1e-5), abs=1e-6)
