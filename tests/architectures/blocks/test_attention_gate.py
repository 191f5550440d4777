"""Attention gates: what they compute, ranges, degenerate cases."""

import pytest
import torch
from autoseg.architectures.blocks.attention_gate import AttentionGate, CoarseAttentionGate
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, max_pool2d


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def set_constant(layer, weight, bias):
    torch.nn.init.constant_(layer.weight, weight)
    torch.nn.init.constant_(layer.bias, bias)


def test_parameters_of_the_coarse_gate():
    gate = CoarseAttentionGate(2, 8, (2, 2))
    count = sum(parameter.numel() for parameter in gate.parameters())
    assert count == (4 * 64 + 8) + (64 + 8) + (9 * 64 + 8) + (8 + 1) + (64 + 8) + 16


def test_the_coarse_gate_step_by_step():
    torch.manual_seed(0)
    gate = CoarseAttentionGate(2, 4, (2, 2), norm="instance").eval()
    x, g = randn(2, 4, 8, 12), randn(2, 4, 4, 6)
    reduced = conv2d(x, gate.from_skip.weight, gate.from_skip.bias, 2)
    first, second = gate.from_guide
    guide = conv_transpose2d(conv2d(g, first.weight, first.bias), second.weight, second.bias, padding=1)
    share = torch.sigmoid(conv2d(torch.relu(reduced + guide), gate.score.weight, gate.score.bias))
    assert share.shape == (2, 1, 4, 6)
    torch.testing.assert_close(gate.weights(x, g), share)
    copied = share.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(gate(x, g), gate.out(copied * x))


@pytest.mark.parametrize(("dims", "stride"), [(2, (1, 2)), (2, (2, 2)), (3, (1, 2, 2)), (3, (2, 2, 2))])
def test_shares_lie_between_zero_and_one_on_the_coarse_grid(dims, stride):
    torch.manual_seed(0)
    gate = CoarseAttentionGate(dims, 3, stride)
    x = randn(2, 3, *[4 * step for step in stride])
    g = randn(2, 3, *[4] * dims)
    share = gate.weights(x, g)
    assert share.shape == (2, 1, *[4] * dims)
    assert 0 < share.min() < share.max() < 1
    assert gate(x, g).shape == x.shape


def test_odd_sizes():
    gate = CoarseAttentionGate(2, 3, (2, 2))
    x = randn(2, 3, 9, 7)
    assert gate(x, max_pool2d(x, 2)).shape == x.shape


def test_an_open_coarse_gate_leaves_projection_and_norm():
    gate, x = CoarseAttentionGate(2, 4, (2, 2)).eval(), randn(1, 4, 6, 6)
    set_constant(gate.score, 0.0, 30.0)
    assert (gate.weights(x, max_pool2d(x, 2)) == 1).all()
    torch.testing.assert_close(gate(x, randn(1, 4, 3, 3)), gate.out(x))


def test_the_fine_gate_step_by_step():
    torch.manual_seed(0)
    gate = AttentionGate(2, 6, 5, 3, norm="instance")
    x, g = randn(2, 6, 8, 8), randn(2, 5, 4, 4)
    skip = gate.from_skip[1](conv2d(x, gate.from_skip[0].weight, gate.from_skip[0].bias))
    guide = gate.from_guide[1](conv2d(g, gate.from_guide[0].weight, gate.from_guide[0].bias))
    guide = interpolate(guide, size=(8, 8), mode="bilinear", align_corners=False)
    inner = torch.relu(skip + guide)
    share = torch.sigmoid(gate.score[1](conv2d(inner, gate.score[0].weight, gate.score[0].bias)))
    torch.testing.assert_close(gate(x, g), share * x)
    assert share.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_fine_gate_opens_and_closes(dims):
    gate, x = AttentionGate(dims, 4, 4, 2), randn(2, 4, *[4] * dims)
    set_constant(gate.score[1], 0.0, 20.0)
    torch.testing.assert_close(gate(x, x), x)
    set_constant(gate.score[1], 0.0, -30.0)
    assert gate(x, x).abs().max() < 1e-10


def test_the_guide_decides():
    torch.manual_seed(0)
    gate, x = AttentionGate(2, 4, 4, 2).eval(), randn(1, 4, 4, 4)
    assert (gate.weights(x, randn(1, 4, 2, 2)) - gate.weights(x, -randn(1, 4, 2, 2))).abs().max() > 1e-2
