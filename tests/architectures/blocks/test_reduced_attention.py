"""Spatially reduced attention: what the keys see, order of tokens, padding, planned reductions."""

import pytest
import torch
from autoseg.architectures.blocks import reduced_attention
from autoseg.architectures.blocks.reduced_attention import ReducedAttention, reduction_for


def make(reduction, width=6):
    torch.manual_seed(0)
    return ReducedAttention(width, 2, reduction)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_without_reduction_it_follows_a_permutation():
    order = torch.randperm(16)
    for reduction, follows in (((1, 1), True), ((2, 2), False)):
        layer, x = make(reduction), draw(1, 4, 4, 6)
        shuffled = x.flatten(1, 2)[:, order].view_as(x)
        difference = layer(shuffled).flatten(1, 2) - layer(x).flatten(1, 2)[:, order]
        assert (difference.abs().max() < 1e-5) == follows


@pytest.mark.parametrize("reduction", [(2, 2), (1, 2, 2), (4, 4)])
def test_the_score_matrix_is_tokens_by_reduced_tokens(reduction, monkeypatch):
    seen, usual = [], reduced_attention.attend

    def spy(query, key, value, heads):
        seen.append((query.shape[1], key.shape[1], value.shape[1], heads))
        return usual(query, key, value, heads)

    monkeypatch.setattr(reduced_attention, "attend", spy)
    x = draw(1, *[4] * len(reduction), 6)
    assert make(reduction)(x).shape == x.shape
    tokens = 4 ** len(reduction)
    keys = tokens // torch.tensor(reduction).prod().item()
    assert seen == [(tokens, keys, keys, 2)]


def test_by_definition():
    layer, x = make((2, 2)), draw(1, 4, 4, 6)
    y = layer.norm(
        torch.nn.functional.conv2d(x.movedim(-1, 1), layer.reduce.weight, layer.reduce.bias, 2).movedim(1, -1)
    )
    k, v = layer.key_value(y.reshape(1, 4, 6)).split(6, -1)
    q, heads = layer.query(x.reshape(1, 16, 6)), []
    for part in (slice(0, 3), slice(3, 6)):
        heads.append((q[..., part] @ k[..., part].mT / 3**0.5).softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)).view_as(x))


def test_maps_that_do_not_divide_are_padded():
    layer, x = make((4, 4)), draw(1, 6, 5, 6)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 2))
    torch.testing.assert_close(layer(x), layer(padded)[:, :6, :5])


@pytest.mark.parametrize(
    ("grid", "factors"),
    [((56, 56), (8, 8)), ((28, 28), (4, 4)), ((14, 14), (2, 2)), ((7, 7), (1, 1)), ((4, 32, 32), (1, 8, 8))],
)
def test_reductions_of_the_published_grids(grid, factors):
    assert reduction_for(grid, 64) == factors
