"""Traced memory: bytes by hand for small networks, growth with batch and patch, and published figures."""

import pytest
import torch
from test_estimate import SIX, make_spec
from torch import nn

from autoseg import plugins
from autoseg.planning.memory import Memory, Untraceable, parameter_count, trace_training
from autoseg.training.bare_step import training_loss


class Pointwise(nn.Module):
    """One 1x1 convolution: 2 outputs of 1 channel, 4 parameters."""

    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.layer(x)


class Peeking(Pointwise):
    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else self.layer(-x)


def test_static_memory_is_weights_and_optimiser_state():
    spec = make_spec((4,), (8, 8))
    assert parameter_count(Pointwise, spec) == 4
    assert trace_training(Pointwise, spec, 1, precision="fp32").static == 2 * 16  # weights, momentum; float32
    adam = trace_training(Pointwise, spec, 1, precision="fp32", optimizer="adamw").static
    assert adam == 3 * 16 + 2 * 4  # weights, two moments, one step counter per parameter


def test_peak_holds_at_least_what_backward_needs():
    voxels = 8 * 8
    memory = trace_training(Pointwise, make_spec((4,), (8, 8)), 1, precision="fp32")
    image, target, logits = 4 * voxels, 8 * voxels, 2 * 4 * voxels
    assert memory.peak >= memory.static + image + target + 2 * logits
    assert memory.peak <= memory.static + 12 * logits + image + 2 * target


def test_peak_is_affine_in_the_batch():
    spec = make_spec((8, 16, 32), (32, 32))
    network = plugins.load("architecture", "plain_unet")
    one, two, four = (trace_training(network, spec, batch) for batch in (1, 2, 4))
    assert one.static == two.static == four.static
    assert four.peak - two.peak == pytest.approx(2 * (two.peak - one.peak), rel=0.05)
    full = trace_training(network, spec, 4, precision="fp32")
    assert 1.3 < (full.peak - full.static) / (four.peak - four.static) < 2.2


@pytest.mark.parametrize(
    ("name", "blocks", "decoder", "published"),
    [("plain_unet", 2, 2, 7.7e9), ("residual_encoder_unet", (1, 3, 4, 6, 6, 6), 1, 9.1e9)],
)
def test_published_memory_is_met(name, blocks, decoder, published):
    spec = make_spec(SIX, (128,) * 3, blocks, decoder)
    memory = trace_training(plugins.load("architecture", name), spec, 2)
    assert memory.device_bytes == pytest.approx(published, rel=0.12)


def test_nothing_is_allocated_and_nothing_stays():
    spec = make_spec((64, 128), (2048, 2048, 2048)[:2])
    memory = trace_training(plugins.load("architecture", "plain_unet"), spec, 512)
    assert memory.peak > 2**40  # a terabyte
    assert isinstance(memory, Memory)


def test_networks_that_look_at_values_cannot_be_traced():
    with pytest.raises(Untraceable, match="Peeking at patch"):
        trace_training(Peeking, make_spec((4,), (8, 8)), 1)


def test_training_loss_is_lowest_for_the_truth():
    target = torch.tensor([[[0, 1], [1, 0]]])
    right = torch.stack([10.0 * (target == 0), 10.0 * (target == 1)], 1)
    assert training_loss(right, target).item() == pytest.approx(-1, abs=1e-3)
    assert training_loss(right.flip(1), target) > 5
    half = nn.functional.interpolate(right, scale_factor=0.5)
    assert training_loss([right, half], target) < -1
