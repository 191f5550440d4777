"""The Mamba layer: size, causality, initial values."""

import pytest
import torch
from autoseg.architectures.blocks.mamba import Mamba, MambaBranch


def test_size_of_the_published_layer():
    # in 64 x 256, conv 128 x 4 + 128, x 128 x 36, dt 4 x 128 + 128, A 128 x 16, D 128, out 128 x 64
    wanted = 16384 + 640 + 4608 + 640 + 2048 + 128 + 8192
    assert sum(parameter.numel() for parameter in Mamba(64).parameters()) == wanted


def test_a_token_sees_only_those_before_it():
    torch.manual_seed(0)
    layer, tokens = Mamba(8), torch.randn(1, 40, 8)
    other = tokens.clone()
    other[:, 25:] += 1
    difference = (layer(tokens) - layer(other)).abs().amax((0, 2))
    assert (difference[:25] < 1e-6).all()
    assert (difference[25:] > 1e-6).all()


def test_initial_values():
    torch.manual_seed(0)
    branch = MambaBranch(256, rank=8)
    steps = torch.nn.functional.softplus(branch.dt_proj.bias)
    assert steps.min() >= 0.001 * 0.999
    assert steps.max() <= 0.1 * 1.001
    assert steps.log().mean().item() == pytest.approx(-4.605, abs=0.25)  # the middle of log 0.001 and log 0.1
    torch.testing.assert_close(branch.A_log.exp()[3], torch.arange(1.0, 17.0))
    assert (branch.D == 1).all()


def test_odd_widths_work():
    assert Mamba(5)(torch.randn(1, 7, 5)).shape == (1, 7, 5)
