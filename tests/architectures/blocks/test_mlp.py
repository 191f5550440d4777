"""The perceptron of transformer blocks."""

import math

import torch
from autoseg.architectures.blocks.mlp import Mlp


def test_by_definition():
    mlp, x = Mlp(3, 5, drop=0.5).double().eval(), torch.randn(2, 4, 3, dtype=torch.float64)
    hidden = mlp.fc1(x)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU, not its approximation
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden))


def test_dropout_acts_while_training():
    mlp = Mlp(8, 8, drop=0.5)
    torch.manual_seed(0)
    dropped = mlp(torch.ones(1000, 8)) == 0
    assert 0.4 < dropped.float().mean() < 0.6
