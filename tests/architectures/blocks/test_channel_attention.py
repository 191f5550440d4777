"""Channel attention: by hand, identity at the start."""

import pytest
import torch
from autoseg.architectures.blocks.channel_attention import ChannelAttention


def test_by_hand():
    layer, x = ChannelAttention(), torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    weights = torch.tensor([[[0.7311, 0.2689], [0.8808, 0.1192]]])  # softmax(1, 0) and softmax(2, 0)
    torch.testing.assert_close(layer.weights(x), weights, atol=5e-5, rtol=0)
    torch.nn.init.ones_(layer.gamma)
    added = torch.tensor([1.2689, 1.1192]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(layer(x) - x, added, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 3, 4, 5)])
def test_it_starts_as_the_identity(shape):
    torch.manual_seed(0)
    layer, x = ChannelAttention(), torch.randn(shape)
    assert torch.equal(layer(x), x)
    torch.testing.assert_close(layer.weights(x).sum(-1), torch.ones(2, 6))
    assert [name for name, _ in layer.named_parameters()] == ["gamma"]


def test_long_sums_do_not_overflow_in_half_precision():
    layer = ChannelAttention()
    x = torch.full((1, 3, 300, 300), 4.0)  # products of 1.4 million, beyond float16
    with torch.autocast("cpu", torch.float16):
        assert layer(x).isfinite().all()
