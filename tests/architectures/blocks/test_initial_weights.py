"""First values of linear layers; other layers keep theirs."""

import pytest
import torch
from autoseg.architectures.blocks.initial_weights import draw_linear


def test_linear_layers_only():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False), torch.nn.Conv2d(2, 2, 3)
    )
    before = network[2].weight.clone()
    network.apply(draw_linear)
    for layer in network[:2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(layer.weight.mean().item()) < 1e-3
    assert (network[0].bias == 0).all()
    assert torch.equal(network[2].weight, before)
