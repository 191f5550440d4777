"""ASPP: a sum of dilated branches, dilations per axis."""

import pytest
import torch
from autoseg.architectures.blocks.aspp import SumASPP, scaled_dilations


def test_it_is_a_sum_not_a_concatenation():
    layer = SumASPP(2, 5, 4)
    assert sum(parameter.numel() for parameter in layer.out.parameters()) == 4 * 4 + 4
    assert [branch[0].dilation for branch in layer.branches] == [(1, 1), (6, 6), (12, 12), (18, 18)]
    assert sum(parameter.numel() for parameter in layer.parameters()) == 4 * (5 * 4 * 9 + 4 + 8) + 20
    assert layer(torch.zeros(2, 5, 7, 9)).shape == (2, 4, 7, 9)


@pytest.mark.parametrize("kept", range(4))
def test_silent_branches_leave_a_single_dilated_convolution(kept):
    torch.manual_seed(0)
    layer, x = SumASPP(2, 3, 4).eval(), torch.randn(1, 3, 24, 24)
    for number, (conv, norm) in enumerate(layer.branches):
        if number != kept:
            torch.nn.init.zeros_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
            torch.nn.init.zeros_(norm.bias)
    conv, norm = layer.branches[kept]
    step = (1, 6, 12, 18)[kept]
    alone = norm(torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=step, dilation=step))
    torch.testing.assert_close(layer(x), layer.out(alone))


def test_dilations_per_axis():
    layer = SumASPP(3, 2, 2, dilations=[(1, 1, 1), (1, 3, 6)], norm="instance")
    assert layer.branches[1][0].padding == (1, 3, 6)
    assert layer(torch.zeros(1, 2, 3, 8, 8)).shape == (1, 2, 3, 8, 8)


def test_dilations_follow_the_map():
    assert scaled_dilations((32, 32), usual=32) == [(1, 1), (6, 6), (12, 12), (18, 18)]
    assert scaled_dilations((16, 64), usual=32) == [(1, 1), (3, 12), (6, 24), (9, 36)]
    assert scaled_dilations((1, 2, 4), usual=32) == [(1, 1, 1), (1, 1, 1), (1, 1, 2), (1, 1, 2)]
    assert scaled_dilations((256, 19, 18)) == [(1, 1, 1), (6, 6, 6), (12, 12, 12), (18, 18, 1)]
