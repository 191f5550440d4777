"""The loss of self-distillation by hand in float64, the centre, schedules, and how a collapse shows."""

import math

import numpy as np
import pytest
import torch
from autoseg.trainers.dino_loss import SelfDistillationLoss, cosine, distinction, teacher_temperature


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def test_the_loss_by_hand():
    random = np.random.default_rng(0)
    student, teacher, centre = random.uniform(-1, 1, (8, 5)), random.uniform(-1, 1, (4, 5)), random.uniform(-1, 1, 5)
    loss = SelfDistillationLoss(5)
    loss.centre.copy_(torch.from_numpy(centre))
    expected, pairs, pictures = 0.0, 0, 2
    for large in range(2):
        for view in range(4):
            if view == large:
                continue
            pairs += 1
            for number in range(pictures):
                target = softmax((teacher[large * pictures + number] - centre) / 0.05)
                guess = np.log(softmax(student[view * pictures + number] / 0.1))
                expected -= (target * guess).sum() / pictures
    found = loss(torch.from_numpy(student), torch.from_numpy(teacher), 0.05)
    assert pairs == 6
    assert found.item() == pytest.approx(expected / pairs, rel=1e-5)


def test_only_the_student_learns_and_never_from_the_same_crop():
    torch.manual_seed(0)
    loss = SelfDistillationLoss(3)
    student = torch.randn(2, 3, requires_grad=True)  # one picture, two large crops
    teacher = torch.randn(2, 3, requires_grad=True)
    targets = loss.targets(teacher, 0.04).flip(0)  # each learns from the other
    found = loss(student, teacher, 0.04)
    torch.testing.assert_close(found, -(targets * (student / 0.1).log_softmax(1)).sum(1).mean())
    found.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_centre_follows_the_mean_of_the_teacher():
    loss = SelfDistillationLoss(2)
    teacher = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    for step in range(3):
        loss(torch.zeros(2, 2), teacher, 0.04)
        expected = 1 - 0.9 ** (step + 1)
        assert loss.centre.tolist() == pytest.approx([0.5 * expected, -0.5 * expected])
    assert "centre" in loss.state_dict()
    assert not list(loss.parameters())


def test_centring_keeps_an_output_from_winning_and_sharpening_keeps_them_from_being_even():
    loss = SelfDistillationLoss(4)
    teacher = 0.1 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0, 0, 0])
    assert (loss.targets(teacher, 0.04).argmax(1) == 0).all()
    for _ in range(80):
        loss.follow(teacher)
    assert len(set(loss.targets(teacher, 0.04).argmax(1).tolist())) == 4
    sharp, even = (distinction(loss.targets(teacher, temperature))[0] for temperature in (0.04, 10.0))
    assert sharp < 0.8
    assert even == pytest.approx(math.log(4), abs=1e-3)


def test_schedules():
    rising = [teacher_temperature(each, 0.3, 0.07) for each in (0, 0.15, 0.3, 1)]
    assert rising == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert teacher_temperature(0.0, 0.0, 0.07) == 0.07
    assert [cosine(0.996, 1.0, each) for each in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1.0])
    assert [cosine(0.04, 0.4, each) for each in (0, 0.25, 1)] == pytest.approx([0.04, 0.0927208, 0.4])


def test_a_collapse_shows():
    assert distinction(torch.eye(4)) == pytest.approx((0, math.log(4)))
    constant = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(5, -1)
    entropy, divergence = distinction(constant)
    assert 0 < entropy < math.log(4)
    assert divergence == pytest.approx(0, abs=1e-6)
    assert distinction(torch.full((5, 4), 0.25)) == pytest.approx((math.log(4), 0), abs=1e-6)
