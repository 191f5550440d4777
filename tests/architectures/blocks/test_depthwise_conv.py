"""Depthwise convolutions whose kernels reach beyond the map."""

import pytest
import torch
from autoseg.architectures.blocks.depthwise_conv import depthwise
from torch.nn import functional


@pytest.mark.parametrize("size", [(8, 4, 6), (1, 12, 11), (30, 24, 1)])
@pytest.mark.parametrize("kernel", [(21, 1, 1), (1, 21, 1), (5, 5, 5)])
def test_it_is_the_padded_convolution(size, kernel):
    torch.manual_seed(0)
    layer, x = depthwise(6, kernel).double(), torch.randn(2, 6, *size, dtype=torch.float64)
    weight = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    expected = functional.conv3d(x, weight, bias, padding=[edge // 2 for edge in kernel], groups=6)
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-12)
    expected.square().sum().backward()
    found.square().sum().backward()
    assert torch.allclose(layer.weight.grad, weight.grad, atol=1e-10)
    assert torch.allclose(layer.bias.grad, bias.grad, atol=1e-10)


def test_it_has_a_2d_form():
    layer, x = depthwise(2, (1, 7)), torch.randn(1, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = functional.conv2d(x, layer.weight, layer.bias, padding=(0, 3), groups=2)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("kernel", [(21, 1, 1), (1, 21, 1), (1, 1, 21)])
def test_gradients_of_weights_out_of_reach_are_zero_in_bfloat16(kernel):
    torch.manual_seed(0)
    layer = depthwise(16, kernel).to(memory_format=torch.channels_last_3d)
    x = torch.randn(1, 16, 8, 8, 8)
    for _ in range(5):
        del [torch.full((size,), float("nan")) for size in (16, 100, 336, 1000, 10000)][:]  # what memory may hold
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().square().sum().backward()
        gradient = layer.weight.grad.flatten(1)
        assert gradient.isfinite().all()
        assert layer.bias.grad.isfinite().all()
        assert gradient[:, [0, 1, 2, 18, 19, 20]].abs().max() == 0  # 7 voxels to either side are within reach
        assert gradient[:, 3:18].abs().min() > 0


@pytest.mark.parametrize(("width", "length"), [(8, 15), (8, 21), (33, 21)])
def test_long_kernels_of_few_channels_are_computed_in_float32(width, length):
    """In bf16 oneDNN would write machine code for these until the test is killed."""
    torch.manual_seed(0)
    layer = depthwise(width, (1, length)).to(memory_format=torch.channels_last)
    x = torch.randn(1, width, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(x.bfloat16().float()))
