"""Rotary positions and the EVA block."""

import math

import pytest
import torch
from autoseg.architectures.blocks.eva import DropPath, EvaBlock, SwiGLU
from autoseg.architectures.blocks.rotary_attention import RotaryAttention, rotary_table, rotate
from network_specs import stir


def test_the_table_of_the_small_network():
    sine, cosine = rotary_table((8, 8, 8), 66)
    assert sine.shape == cosine.shape == (512, 66)  # together 512 x 132
    sine, _ = rotary_table((8, 8, 8), 72)
    assert sine.shape == (512, 72)


def test_angles_by_hand():
    # 12 channels on 3 axes: 2 bands per axis, 1 and 10000^(-1/2) = 0.01, every angle twice
    sine, cosine = rotary_table((2, 3, 4), 12)
    token = 1 * 12 + 2 * 4 + 3  # at (1, 2, 3)
    angles = torch.tensor([1, 1, 0.01, 0.01, 2, 2, 0.02, 0.02, 3, 3, 0.03, 0.03])
    torch.testing.assert_close(sine[token], angles.sin())
    torch.testing.assert_close(cosine[token], angles.cos())


def test_a_quarter_turn():
    x = torch.tensor([[1.0, 2.0, 7.0]])  # the third channel has no partner and stays
    sine, cosine = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
    assert rotate(x, sine, cosine).tolist() == [[-2.0, 1.0, 7.0]]


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
def test_logits_depend_on_coordinate_differences_only(grid):
    torch.manual_seed(0)
    tokens, width = math.prod(grid), 24
    q, k = torch.randn(tokens, width), torch.randn(tokens, width)
    here, there = rotary_table(grid, width), rotary_table(grid, width, offset=5)
    logits = rotate(q, *here) @ rotate(k, *here).T
    torch.testing.assert_close(logits, rotate(q, *there) @ rotate(k, *there).T, rtol=1e-4, atol=1e-4)
    assert (logits - q @ k.T).abs().max() > 0.1
    same = torch.randn(width).expand(tokens, width)  # one content everywhere: only the difference is left
    logits = rotate(same, *here) @ rotate(same, *here).T
    place = torch.arange(tokens).reshape(grid)
    start, along = place[(0,) * len(grid)], place[(0,) * (len(grid) - 1) + (2,)]  # two apart on the last axis
    other_start, other_along = place[(1,) * len(grid)], place[(1,) * (len(grid) - 1) + (3,)]
    torch.testing.assert_close(logits[start, along], logits[other_start, other_along], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.diagonal(), logits[0, 0].expand(tokens), rtol=1e-4, atol=1e-4)


def test_attention_is_softmax_of_rotated_products():
    torch.manual_seed(0)
    layer, tokens = RotaryAttention(24, 2), torch.randn(1, 6, 24)
    sine, cosine = rotary_table((2, 3), 12)
    assert layer.key.bias is None
    heads = []
    for head in range(2):
        part = slice(12 * head, 12 * head + 12)
        q, k, v = (getattr(layer, name)(tokens)[0][:, part] for name in ("query", "key", "value"))
        weights = (rotate(q, sine, cosine) @ rotate(k, sine, cosine).T / math.sqrt(12)).softmax(-1)
        heads.append(weights @ v)
    wanted = layer.out(layer.norm(torch.cat(heads, -1)))
    torch.testing.assert_close(layer(tokens, sine, cosine)[0], wanted)


def test_swiglu_by_hand():
    layer, x = SwiGLU(4, 6), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    gate = layer.gate(x)
    wanted = layer.out(layer.norm(gate * torch.sigmoid(gate) * layer.value(x)))
    torch.testing.assert_close(layer(x), wanted)


def test_zero_scales_make_the_block_the_identity():
    block, tokens = EvaBlock(24, 2, 48), torch.randn(1, 6, 24)
    torch.nn.init.zeros_(block.scale_attention)
    torch.nn.init.zeros_(block.scale_mlp)
    assert torch.equal(block(tokens, *rotary_table((2, 3), 12)), tokens)


def test_drop_path_keeps_the_mean_and_whole_samples():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 3))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y.std(1) == 0).all()
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(y), y)


def test_the_block_normalises_before_scales_and_adds():
    torch.manual_seed(0)
    block, tokens, turns = stir(EvaBlock(24, 2, 48)), torch.randn(2, 6, 24).double(), rotary_table((2, 3), 12)
    middle = tokens + block.scale_attention * block.attention(block.norm_attention(tokens), *turns)
    torch.testing.assert_close(block(tokens, *turns), middle + block.scale_mlp * block.mlp(block.norm_mlp(middle)))
    assert block.norm_attention.eps == block.norm_mlp.eps == block.attention.norm.eps == 1e-5
