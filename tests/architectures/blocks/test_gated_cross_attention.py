"""The gated skip: sources of queries, keys and values, bounds of the gate, the cap on tokens."""

import math

import pytest
import torch
from autoseg.architectures.blocks.gated_cross_attention import GatedCrossAttention, pooling
from autoseg.architectures.blocks.sinusoidal_positions import add_positions


def make(dims=2, coarse=16, fine=8, *, heads=2, most=4096, stride=None):
    torch.manual_seed(0)
    return GatedCrossAttention(coarse, fine, stride or (2,) * dims, (3,) * dims, heads, max_tokens=most).eval()


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_parameters_do_not_depend_on_the_heads():
    wanted = 3 * 64 + 2 * (8 * 8 + 8) + 3 * 16 + (16 * 8 + 8) + (16 * 16 * 9 + 16) + (16 * 8 + 8) + 2 * 8
    for heads in (1, 4):
        assert sum(parameter.numel() for parameter in make(heads=heads).parameters()) == wanted


def test_the_gate_lies_between_0_and_1_and_multiplies_the_skip_with_positions():
    block, y, skip = make(), draw(2, 16, 4, 5), draw(2, 8, 8, 10)
    gate = block.gate(add_positions(y), add_positions(skip))
    assert gate.shape == (2, 8, 4, 5)
    assert 0 < gate.min() < gate.max() < 1
    full = torch.nn.functional.interpolate(gate, size=(8, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(block(y, skip)[:, :8], full * add_positions(skip))


def test_step_by_step():
    block, y, skip = make().double(), draw(2, 16, 3, 5).double(), draw(2, 8, 6, 10).double()
    for layer in (block.query, block.key, block.value):
        torch.nn.init.normal_(layer.weight)  # so that positions attend to different ones
    for sequence in (block.values, block.queries, block.to_gate, block.up):
        for norm in (layer for layer in sequence if isinstance(layer, torch.nn.BatchNorm2d)):
            torch.nn.init.normal_(norm.bias)

    def larger(x):
        return torch.nn.functional.interpolate(x, size=(6, 10), mode="bilinear", align_corners=True)

    def tokens(x):
        return x.permute(0, 2, 3, 1).reshape(2, 15, 8)

    y_at, skip_at = add_positions(y), add_positions(skip)
    source = tokens(torch.relu(block.queries[1](block.queries[0](y_at))))
    values = block.values[1](torch.nn.functional.max_pool2d(skip_at, 2))
    values = tokens(torch.relu(block.values[2](values)))
    q, k, v = source @ block.query.weight.T, source @ block.key.weight.T, values @ block.value.weight.T
    heads = [(q[..., h] @ k[..., h].mT / 2).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    mixed = torch.cat(heads, -1).reshape(2, 3, 5, 8).permute(0, 3, 1, 2)
    gate = torch.sigmoid(block.to_gate[1](block.to_gate[0](mixed)))
    up = torch.relu(block.up[2](block.up[1](block.up[0](larger(y_at)))))
    torch.testing.assert_close(block(y, skip), torch.cat([larger(gate) * skip_at, up], 1))


def test_an_open_gate_leaves_a_plain_skip():
    block, y, skip = make(), draw(1, 16, 4, 4), draw(1, 8, 8, 8)
    torch.nn.init.zeros_(block.to_gate[1].weight)
    torch.nn.init.constant_(block.to_gate[1].bias, 20.0)
    torch.testing.assert_close(block(y, skip)[:, :8], add_positions(skip), atol=1e-6, rtol=1e-6)


def test_queries_and_keys_come_from_the_coarse_map_values_from_the_skip():
    block, y, skip = make(), draw(1, 16, 4, 4), draw(1, 8, 8, 8)
    torch.nn.init.zeros_(block.queries[0].weight)  # every query and key equal: the mean of the values everywhere
    torch.nn.init.zeros_(block.queries[0].bias)
    gate = block.gate(add_positions(y), add_positions(skip))
    torch.testing.assert_close(gate, gate[..., :1, :1].expand_as(gate))
    block = make()
    before = block.gate(y, skip)
    torch.nn.init.zeros_(block.value.weight)  # nothing of the skip is left
    assert torch.equal(block.gate(y, skip), block.gate(y, skip + 1))
    assert not torch.equal(before, block.gate(y, skip))


@pytest.mark.parametrize(
    ("grid", "most", "factors"),
    [
        ((64, 64), 4096, (1, 1)),
        ((128, 128), 4096, (2, 2)),
        ((65, 64), 4096, (2, 1)),
        ((4, 128, 128), 4096, (1, 4, 4)),
        ((3, 5), 1, (3, 5)),
    ],
)
def test_pooling(grid, most, factors):
    assert pooling(grid, most) == factors
    assert math.prod(-(-edge // factor) for edge, factor in zip(grid, factors, strict=True)) <= most


def test_pooled_attention_keeps_sizes():
    block = make(3, most=4, stride=(1, 2, 2))
    y, skip = draw(1, 16, 2, 3, 5), draw(1, 8, 2, 7, 10)
    assert math.prod(block.gate(y, skip).shape[2:]) <= 4
    assert block(y, skip).shape == (1, 16, 2, 7, 10)
    torch.testing.assert_close(make(3, most=30, stride=(1, 2, 2))(y, skip)[:, 8:], block(y, skip)[:, 8:])
