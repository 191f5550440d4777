"""Efficient attention: axes of its two softmaxes, order of tokens, cost."""

import torch
from autoseg.architectures.blocks.efficient_attention import EfficientAttention
from torch.utils.flop_counter import FlopCounterMode


def make(width=6):
    torch.manual_seed(0)
    return EfficientAttention(width)


def test_by_definition():
    layer, x = make(), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    weights = q.exp() / q.exp().sum(2, keepdim=True)
    shares = k.exp() / k.exp().sum(1, keepdim=True)
    wanted = torch.einsum("bnc,bmc,bmd->bnd", weights, shares, v)
    torch.testing.assert_close(layer(x), layer.out(wanted))


def test_constant_keys_give_the_mean_value():
    layer, x = make(), torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(layer.key.weight)
    wanted = layer.out(layer.value(x).mean(1, keepdim=True)).expand_as(x)
    torch.testing.assert_close(layer(x), wanted)


def test_it_follows_a_permutation():
    layer, x = make(), torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(7)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_cost_is_linear_in_tokens():
    flops = []
    for tokens in (64, 128):
        with FlopCounterMode(display=False) as counter:
            make()(torch.zeros(1, tokens, 6))
        flops.append(counter.get_total_flops())
    assert flops[1] == 2 * flops[0]
