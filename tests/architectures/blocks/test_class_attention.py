"""The attention of a summary token, by hand and by definition."""

import torch
from autoseg.architectures.blocks.class_attention import ClassAttention


def make():
    torch.manual_seed(0)
    return ClassAttention(6, 2), torch.randn(2, 5, 6)


def test_equal_scores_give_the_mean_value():
    layer, tokens = make()
    torch.nn.init.zeros_(layer.query.weight)
    torch.nn.init.zeros_(layer.query.bias)
    torch.testing.assert_close(layer(tokens), layer.out(layer.value(tokens).mean(1, keepdim=True)))


def test_by_definition():
    layer, tokens = make()
    q, k, v = layer.query(tokens[:, :1]), layer.key(tokens), layer.value(tokens)
    heads = [
        (q[..., part] @ k[..., part].mT / 3**0.5).softmax(-1) @ v[..., part] for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(layer(tokens), layer.out(torch.cat(heads, -1)))
