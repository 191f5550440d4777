"""Multi-head self-attention: the axis of its softmax, its heads, the pre-norm layer."""

import math

import pytest
import torch
from autoseg.architectures.blocks.self_attention import SelfAttention, TransformerLayer, attend, common_heads


def test_softmax_over_keys_by_hand():
    q, k, v = (torch.tensor(values).reshape(1, 2, 1) for values in ([math.log(2), 0.0], [1.0, 0.0], [3.0, 0.0]))
    # rows (2/3, 1/3) and (1/2, 1/2)
    torch.testing.assert_close(attend(q, k, v, 1).flatten(), torch.tensor([2.0, 1.5]))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_every_head_has_its_own_channels_and_scale(heads):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, 8, generator=generator) for n in (3, 5))
    v = torch.randn(2, 5, 12, generator=generator)
    parts = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
    wanted = torch.cat([(a @ b.mT / math.sqrt(8 / heads)).softmax(-1) @ c for a, b, c in parts], -1)
    torch.testing.assert_close(attend(q, k, v, heads), wanted)


def test_equal_scores_give_the_mean_of_the_values():
    torch.manual_seed(0)
    layer, tokens = SelfAttention(8, 2), torch.randn(1, 5, 8)
    torch.nn.init.zeros_(layer.qkv.weight[:8].data)
    torch.nn.init.zeros_(layer.qkv.bias[:8].data)
    value = layer.qkv(tokens)[..., 16:]
    torch.testing.assert_close(layer(tokens), layer.out(value.mean(1, keepdim=True)).expand(1, 5, 8))


def test_attention_follows_a_permutation_of_tokens():
    torch.manual_seed(0)
    layer, tokens, order = SelfAttention(8, 2), torch.randn(1, 6, 8), torch.randperm(6)
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens)[:, order])


def test_biases_only_where_asked():
    assert SelfAttention(8, 2, qkv_bias=False).qkv.bias is None
    count = sum(parameter.numel() for parameter in TransformerLayer(8, 2, 24).parameters())
    assert count == 8 * 24 + 24 + 8 * 8 + 8 + 8 * 24 + 24 + 24 * 8 + 8 + 4 * 8


def test_the_layer_normalises_before_and_adds():
    torch.manual_seed(0)
    layer, tokens = TransformerLayer(8, 2, 16).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    torch.nn.init.normal_(layer.norm_attention.weight)
    middle = tokens + layer.attention(layer.norm_attention(tokens))
    torch.testing.assert_close(layer(tokens), middle + layer.mlp(layer.norm_mlp(middle)))
    for last in (layer.attention.out, layer.mlp.fc2):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    assert torch.equal(layer(tokens), tokens)


def test_dropout_only_while_training():
    torch.manual_seed(0)
    layer, tokens = TransformerLayer(8, 2, 16, dropout=0.5, drop_path=0.5), torch.randn(4, 5, 8)
    assert not torch.equal(layer(tokens), layer(tokens))
    assert torch.equal(layer.eval()(tokens), layer(tokens))


def test_heads_that_divide_a_width():
    assert [common_heads(*sizes) for sizes in ((32, 8), (6, 8), (15, 8), (7, 4), (320, 5))] == [8, 6, 5, 1, 5]


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_from_elsewhere(bias):
    torch.manual_seed(0)
    layer, tokens = SelfAttention(8, 2, qkv_bias=bias), torch.randn(1, 6, 8)
    torch.testing.assert_close(layer(tokens, tokens), layer(tokens))
    context = torch.randn(1, 3, 8)
    torch.testing.assert_close(layer(tokens, context)[:, 4], layer(tokens[:, 4:5], context)[:, 0])
    assert layer(tokens, context).shape == (1, 6, 8)
    block = TransformerLayer(8, 2, 16)
    torch.testing.assert_close(block(tokens, lambda normed: normed), block(tokens))
    assert not torch.allclose(block(tokens, lambda normed: normed[:, :2]), block(tokens))
