"""The Mamba layer: size, causality, initial values."""

import pytest
import torch
from autoseg.architectures.blocks.mamba import Mamba, MambaBranch
from network_specs import stir


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


def test_the_branch_and_the_layer_by_definition():
    torch.manual_seed(0)
    layer, tokens = stir(Mamba(8, state=3)), torch.randn(2, 7, 8).double()
    branch, silu = layer.branch, torch.nn.functional.silu
    assert branch.conv1d.bias is not None
    x, z = torch.nn.functional.linear(tokens, layer.in_proj.weight).chunk(2, -1)
    padded = torch.nn.functional.pad(x.mT, (3, 0))  # causal
    u = silu(torch.nn.functional.conv1d(padded, branch.conv1d.weight, branch.conv1d.bias, groups=16)).mT
    step, b, c = torch.nn.functional.linear(u, branch.x_proj.weight).split([1, 3, 3], -1)
    delta = torch.nn.functional.softplus(branch.dt_proj(step))
    state, outputs = torch.zeros(2, 16, 3).double(), []
    for t in range(7):
        decay = torch.exp(-delta[:, t, :, None] * branch.A_log.exp())
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1) + branch.D * u[:, t])
    wanted = torch.nn.functional.linear(torch.stack(outputs, 1) * silu(z), layer.out_proj.weight)
    torch.testing.assert_close(layer(tokens), wanted, atol=1e-5, rtol=1e-4)
    assert layer.in_proj.bias is None
    assert layer.out_proj.bias is None
