"""The loss of MPU-Net by hand, and how lower outputs and the learning rate fade."""

import math

import pytest
import torch
from autoseg.trainers.tversky_bce import TverskyBCELoss

from autoseg.errors import UserError
from autoseg.labels import Labels

TWO = Labels(values={"a": (1,)})
THREE = Labels(values={"a": (1,), "b": (2,)})
REGIONS = Labels(
    values={"whole": (1, 2), "core": (2,)}, regions=True, paint_order=("whole", "core"), paint_values=(1, 2)
)
HALF = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).reshape(1, 2, 2, 2)


def hard(prediction):
    """Logits of certain probabilities for a label map (B, *S) of two classes."""
    return 50.0 * torch.nn.functional.one_hot(prediction, 2).movedim(-1, 1).float()


@pytest.mark.parametrize(
    ("logits", "expected"),
    [(hard(HALF), 0.703204), (torch.zeros(1, 2, 2, 2, 2), 1.324077), (hard(torch.ones_like(HALF)), 1.430624)],
    ids=["perfect", "even", "all foreground"],
)
def test_numbers_of_the_card(logits, expected):
    assert TverskyBCELoss(TWO)(logits, HALF).item() == pytest.approx(expected, abs=1e-5)


def test_a_missed_voxel_costs_more_than_one_too_many():
    loss = TverskyBCELoss(TWO, bce_weight=0.0)
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[0, 1:3, 1:3, 1:3] = 1
    missed, added = target.clone(), target.clone()
    missed[0, 1, 1, 1], added[0, 0, 0, 0] = 0, 1
    perfect = loss(hard(target), target)
    assert loss(hard(missed), target) - perfect > 1.2 * (loss(hard(added), target) - perfect) > 0


def naive(logits, target, members, valid, *, on_logits=False):
    """Voxel by voxel in float64, as the description has it."""
    p = logits.double().sigmoid()
    total, entropies = [], []
    for sample in range(len(logits)):
        for channel, inside in enumerate(members):
            t = torch.zeros_like(target[sample], dtype=torch.float64)
            for value in inside:
                t += target[sample] == value
            q, keep = p[sample, channel], valid[sample]
            tp, fp, fn = ((a * keep).sum() for a in (q * t, q * (1 - t), (1 - q) * t))
            total.append(tp / (tp + 0.3 * fp + 0.7 * fn + 1))
            score = logits[sample, channel].double() if on_logits else q
            bce = -(t * torch.nn.functional.logsigmoid(score) + (1 - t) * torch.nn.functional.logsigmoid(-score))
            entropies.append(bce[keep])
    return 1 - torch.stack(total).mean() + torch.cat(entropies).mean()


@pytest.mark.parametrize("ignoring", [False, True])
@pytest.mark.parametrize("on_logits", [False, True])
def test_regions_voxel_by_voxel(ignoring, on_logits):
    generator = torch.Generator().manual_seed(0)
    labels = REGIONS.model_copy(update={"ignore": (9,)}) if ignoring else REGIONS
    logits = torch.randn(2, 2, 4, 5, generator=generator)
    target = torch.randint(0, 4 if ignoring else 3, (2, 4, 5), generator=generator)
    valid = target != 3
    got = TverskyBCELoss(labels, on_logits=on_logits)(logits, target)
    expected = naive(logits, target, [(1, 2), (2,)], valid, on_logits=on_logits)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_ignored_voxels_count_for_nothing():
    labels = TWO.model_copy(update={"ignore": (9,)})
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    target = (logits[:, 0] > 0).long()
    target[:, 3:] = labels.ignore_index
    for on_logits in (False, True):
        loss = TverskyBCELoss(labels, on_logits=on_logits)
        upper = TverskyBCELoss(TWO, on_logits=on_logits)(logits[:, :, :3], target[:, :3])
        assert loss(logits, target).item() == pytest.approx(upper.item(), rel=1e-5)


def test_cross_entropy_on_logits_is_the_usual_one():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target = logits.argmax(1)
    both = TverskyBCELoss(THREE, on_logits=True)(logits, target)
    without = TverskyBCELoss(THREE, bce_weight=0.0)(logits, target)
    entropy = torch.nn.functional.cross_entropy(logits, target)
    assert (both - without).item() == pytest.approx(entropy.item(), rel=1e-5)


def test_classes_without_annotation_are_background():
    logits = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randint(0, 3, (1, 6, 6), generator=torch.Generator().manual_seed(1))
    annotated = torch.tensor([[True, True, False]])
    got = TverskyBCELoss(THREE)(logits, target, annotated)
    p = logits.detach().softmax(1)
    merged = torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1).log()
    two = TverskyBCELoss(TWO)(merged, target * (target == 1))
    assert got.item() == pytest.approx(two.item(), rel=1e-5)
    got.backward()
    assert logits.grad.isfinite().all()
    assert TverskyBCELoss(REGIONS)(logits[:, :2], target, annotated).isfinite()


def test_gradients_point_to_the_target():
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    TverskyBCELoss(TWO)(logits, HALF).backward()
    foreground = logits.grad[0, 1]
    assert (foreground[HALF[0] == 1] < 0).all()
    assert (foreground[HALF[0] == 0] > 0).all()


def test_lower_outputs_fade(build):
    trainer = build("tversky_bce", bce_on="logits")
    batch = trainer.build_streams()["labelled"].batch(0)
    outputs = [torch.randn(2, 3, *batch.segmentation.shape[1:]) for _ in range(3)]
    batch = type(batch)(**{**vars(batch), "segmentation": batch.segmentation[:2]})
    each = [trainer.loss(output, batch.segmentation) for output in outputs]
    assert trainer.faded_loss(outputs, batch, 0.5).item() == pytest.approx((each[0] + 0.5 * (each[1] + each[2])).item())
    assert trainer.faded_loss(outputs[0], batch, 0.5).item() == pytest.approx(each[0].item())
    seen = []
    trainer.faded_loss = lambda _logits, _batch, lower: seen.append(lower) or torch.zeros(())
    batches = {"labelled": trainer.build_streams()["labelled"].batch(0)}
    for progress in (0.0, 0.049, 0.051, 0.99):
        next(trainer.training_step(batches, progress))
    assert seen == pytest.approx([0.4, 0.4, 0.32, 0.4 * 0.8**19])


def test_the_learning_rate_halves_six_times(build):
    trainer = build("tversky_bce")
    assert [trainer.schedule(p) for p in (0.0, 0.16, 0.17, 0.5, 0.99)] == [1, 1, 0.5, 0.125, 1 / 32]


def test_it_trains_the_mean_of_mpu_net(build):
    trainer = build("tversky_bce", architecture="mpu_net")
    network = trainer.modules["network"].train()
    batches = {"labelled": trainer.build_streams()["labelled"].batch(0)}
    ((name, loss),) = trainer.training_step(batches, 0.0)
    assert name == "network"
    assert 0.5 * (1 + 0.4 * (len(network.heads) - 1)) < loss.item() < 4
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert math.isfinite(loss.item())


def test_regions_are_refused_where_probabilities_exclude_each_other(build):
    trainer = build("tversky_bce", architecture="mpu_net")
    trainer.labels = REGIONS
    with pytest.raises(UserError, match="regions that may overlap"):
        trainer.build_modules()
