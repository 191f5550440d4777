"""Squeeze-and-excitation: range, hand-computed scale."""

import math

import pytest
import torch
from autoseg.architectures.blocks.squeeze_excite import SqueezeExcite


@pytest.mark.parametrize("shape", [(2, 16, 5, 4), (2, 16, 3, 4, 5)])
def test_scales_lie_between_zero_and_one_and_differ_by_sample(shape):
    torch.manual_seed(0)
    layer, x = SqueezeExcite(16, reduction=8), torch.randn(shape)
    scale = layer.scale(x)
    assert scale.shape == (2, 16)
    assert 0 < scale.min() < scale.max() < 1
    assert not torch.allclose(scale[0], scale[1])
    torch.testing.assert_close(layer(x)[1, 3], x[1, 3] * scale[1, 3])
    assert sum(parameter.numel() for parameter in layer.parameters()) == 2 * 16 * 2


def test_zero_weights_halve():
    layer, x = SqueezeExcite(8), torch.randn(1, 8, 4, 4)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(layer(x), x / 2)


def test_by_hand():
    layer = SqueezeExcite(2, reduction=2)
    with torch.no_grad():
        layer.reduce.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.expand.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]]])  # means 1 and 1, so 3 inside
    up, down = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    torch.testing.assert_close(layer(x), torch.tensor([[[[0.0, 2 * up]], [[down, down]]]]))
