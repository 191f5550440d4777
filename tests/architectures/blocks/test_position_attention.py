"""Position attention: by loops, identity at the start, pooled keys."""

import pytest
import torch
from autoseg.architectures.blocks.position_attention import PositionAttention


def make(dims, width=16, **options):
    torch.manual_seed(0)
    return PositionAttention(dims, width, **options)


@pytest.mark.parametrize(("dims", "shape"), [(2, (4, 3)), (3, (2, 3, 2))])
def test_it_starts_as_the_identity(dims, shape):
    layer = make(dims)
    x = torch.randn(2, 16, *shape)
    assert torch.equal(layer(x), x)
    torch.nn.init.ones_(layer.gamma)
    assert not torch.allclose(layer(x), x)


def test_by_loops_without_scaling():
    layer = make(2)
    torch.nn.init.constant_(layer.gamma, 0.5)
    x = torch.randn(1, 16, 3, 4)
    q, k, v = (part(x).flatten(2)[0] for part in (layer.query, layer.key, layer.value))
    assert q.shape == (2, 12)
    expected = x.flatten(2)[0].clone()
    for position in range(12):
        share = torch.stack([q[:, position] @ k[:, other] for other in range(12)]).softmax(0)
        expected[:, position] += 0.5 * (v * share).sum(1)
    torch.testing.assert_close(layer(x).flatten(2)[0], expected)


def test_parameters():
    assert sum(parameter.numel() for parameter in make(3, 256).parameters()) == 2 * (256 * 32 + 32) + 256 * 257 + 1


def test_keys_are_pooled_on_large_maps_only():
    layer, whole = make(2, max_tokens=12), make(2)
    for each in (layer, whole):
        torch.nn.init.ones_(each.gamma)
    x = torch.randn(1, 16, 3, 4)
    assert torch.equal(layer(x), whole(x))
    x = torch.randn(1, 16, 4, 5)
    assert not torch.allclose(layer(x), whole(x))
    constant = x[..., :1, :1].expand(-1, -1, 4, 5)
    torch.testing.assert_close(layer(constant), whole(constant))


def test_every_position_counts():
    layer = make(2)
    torch.nn.init.ones_(layer.gamma)
    x = torch.randn(1, 16, 4, 4)
    other = x.clone()
    other[..., 3, 3] += 1
    assert ((layer(x) - layer(other)).abs().amax(1) > 1e-7).all()
