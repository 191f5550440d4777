"""The Vision-LSTM block: block-diagonal maps by hand, tokens see only those before, float32, how it begins."""

import pytest
import torch
from autoseg.architectures.blocks.vision_lstm import BlockDiagonal, MatrixLSTMLayer, VisionLSTM


@pytest.fixture
def block():
    torch.manual_seed(0)
    return VisionLSTM(8)


def test_a_block_diagonal_map_by_hand():
    layer = BlockDiagonal(4, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]))
    found = layer(torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
    # 1 + 20, 3 + 40, 500 + 6000, 700 + 8000
    assert found.tolist() == [[[21.0, 43.0, 6500.0, 8700.0]]]


def test_a_token_sees_those_before_it_and_none_after(block):
    tokens = torch.randn(1, 9, 8)
    changed = tokens.clone()
    changed[:, 5, 0] += 1.0  # of one channel: the norm takes out what all have
    difference = (block(changed) - block(tokens)).abs().amax(-1)[0]
    assert (difference[:5] == 0).all()
    assert (difference[5:] > 1e-6).all()


def test_the_sequence_is_mixed_in_float32_also_under_autocast(block):
    tokens = torch.randn(2, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, block(tokens))


def test_the_norm_scales_by_one_plus_its_weight(block):
    tokens = torch.randn(1, 4, 8)
    with torch.no_grad():
        block.norm.fill_(-1.0)  # a scale of 0: the mix sees zeros, which only the biases of its convolution answer
    constant = block(tokens) - tokens
    torch.testing.assert_close(constant, block(torch.zeros_like(tokens)))


def test_without_the_projection_down_tokens_pass(block):
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        block.mix.down.weight.zero_()
    assert torch.equal(block(tokens), tokens)


@pytest.mark.parametrize(("width", "heads"), [(8, 4), (6, 2)])
def test_widths_heads_and_gates_at_the_start(width, heads):
    layer = MatrixLSTMLayer(width)
    assert layer.heads == heads
    assert (layer.up.out_features, layer.conv.in_channels, layer.query.weight.shape) == (
        4 * width, 2 * width, (2 * width // heads, heads, heads),
    )  # fmt: skip
    assert layer.forget_gate.weight.abs().max() == 0
    assert layer.forget_gate.bias.tolist() == pytest.approx(torch.linspace(3, 6, heads).tolist())
    assert layer(torch.zeros(1, 7, width)).shape == (1, 7, width)
