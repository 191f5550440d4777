"""What the GPU benchmark counts and what it states of nnU-Net, by hand."""

import math

import pytest
import torch
from gpu_parts import nnunet_stated
from gpu_parts.traffic import Traffic
from gpu_parts.training import Steps, _Marks
from torch import nn


def test_steps_are_timed_from_end_to_end_once_they_have_settled(monkeypatch):
    times = iter([0.0, 1.0, 1.5, 3.0, 3.25, 5.0])  # begin and end of three steps
    monkeypatch.setattr(_Marks, "_now", lambda self: next(times))
    marks, ended = _Marks(torch.device("cpu"), []), []
    for _ in range(3):
        marks.begin()
        ended.append(marks.end(settle=0.0, settle_steps=1, lasting=0.0, least=2))
    assert ended == [False, False, True]
    assert marks.steps() == Steps(count=2, seconds=2.0, idle_seconds=(0.5 + 0.25) / 2, made=None)


def test_bytes_that_operators_read_and_write():
    a, b = torch.zeros(8), torch.zeros(8)
    with Traffic() as traffic:
        (a + b).view(2, 4)  # a view moves nothing
    assert (traffic.bytes, traffic.convolution_bytes) == (3 * 32, 0)
    with Traffic() as traffic:
        a.add_(1.0)
    assert traffic.bytes == 2 * 32
    with Traffic() as traffic:
        torch.zeros(1).expand(8) + a  # made: 4 bytes; then what repeats itself is read once
    assert traffic.bytes == 4 + 4 + 32 + 32


def test_bytes_of_convolutions_and_their_gradients_are_counted_by_themselves():
    weight = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    image = torch.zeros(1, 1, 2, 2, 2)
    with Traffic() as traffic:
        out = nn.functional.conv3d(image, weight)
        forward = traffic.convolution_bytes
        out.sum().backward()
    assert forward == 32 + 4 + 32
    assert traffic.convolution_bytes == forward + (4 + 32 + 4) + 4  # the gradient of a sum is one number, repeated
    assert traffic.bytes > traffic.convolution_bytes


def test_loss_of_even_logits():
    logits, target = torch.zeros(1, 2, 1, 1, 2), torch.tensor([0, 1]).view(1, 1, 1, 1, 2)
    loss = nnunet_stated.Loss(3, compiled=False)
    dice = 2 * 0.5 / (1 + 1)  # of the foreground: half of each voxel is found, one is there
    single = math.log(2) - dice
    assert loss.weights == pytest.approx([2 / 3, 1 / 3])  # the lowest output counts nothing
    assert float(loss([logits] * 3, [target] * 3)) == pytest.approx(single, abs=1e-4)


def test_tiles_begin_evenly_and_at_most_half_an_edge_apart():
    assert nnunet_stated._starts(128, 128) == [0]
    assert nnunet_stated._starts(110, 64) == [0, 23, 46]
    assert nnunet_stated._starts(273, 128) == [0, 48, 97, 145]


def test_a_window_over_a_network_that_changes_nothing_gives_the_image():
    image = torch.randn(1, 24, 16, 20)
    found = nnunet_stated.sliding_window(torch.clone, image, (16, 16, 16), 1)
    assert found.dtype == torch.half
    inside = (slice(None), *[slice(4, -4)] * 3)  # beyond it, halves are too coarse for the small weights
    assert torch.allclose(found[inside].float(), image[inside], atol=0.02)


def test_a_training_step_learns():
    torch.manual_seed(0)

    class Twice(nn.Conv3d):
        """Two outputs, of which the second counts nothing."""

        def forward(self, image):
            found = super().forward(image)
            return [found, found]

    step = nnunet_stated.TrainingStep(Twice(1, 2, 1), 2, torch.device("cpu"))
    image = torch.randn(2, 1, 4, 4, 4)
    batch = {"data": image, "target": [(image > 0).to(torch.int16)] * 2}
    losses = [step(batch) for _ in range(30)]
    assert losses[-1] < losses[0]
