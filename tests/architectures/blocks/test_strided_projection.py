"""A strided 1x1 convolution that does not use oneDNN's."""

import pytest
import torch
from autoseg.architectures.blocks.strided_projection import strided_projection


@pytest.mark.parametrize(("stride", "shape"), [((2, 2), (8, 8)), ((1, 2), (5, 7)), ((2, 1, 2), (4, 3, 5))])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_strided_convolution(stride, shape, bias):
    torch.manual_seed(0)
    kind = torch.nn.Conv2d if len(stride) == 2 else torch.nn.Conv3d
    usual, ours = kind(3, 5, 1, stride, bias=bias), strided_projection(3, 5, stride, bias=bias)
    ours.load_state_dict(usual.state_dict())
    x = torch.randn(2, 3, *shape)
    torch.testing.assert_close(ours(x), usual(x))


def test_gradients_of_few_channels_in_channels_last():
    """Where oneDNN's strided 1x1 convolution breaks the memory of the process."""
    torch.manual_seed(0)
    layer = strided_projection(4, 8, (2, 2))
    x = torch.randn(2, 4, 16, 16)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    layer.to(memory_format=torch.channels_last)
    for _ in range(3):
        layer.weight.grad = None
        layer(x.to(memory_format=torch.channels_last)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected)
