"""The residual blocks of UNETR step by step."""

import pytest
import torch
from autoseg.architectures.blocks.residual_conv import ResidualBlock, ResidualUpBlock

conv, norm = torch.nn.functional.conv2d, torch.nn.functional.instance_norm


def leaky(x):
    return torch.nn.functional.leaky_relu(x, 0.01)


@pytest.mark.parametrize("after", [3, 5])
def test_the_block_by_definition(after):
    torch.manual_seed(0)
    block, x = ResidualBlock(2, 3, after), torch.randn(2, 3, 6, 5)
    assert not [name for name in block.state_dict() if not name.endswith("weight")]  # no biases, no norms' parameters
    y = leaky(norm(conv(x, block.convs[0].weight, padding=1)))
    y = norm(conv(y, block.convs[3].weight, padding=1))
    skip = x if after == 3 else norm(conv(x, block.skip[0].weight))
    torch.testing.assert_close(block(x), leaky(y + skip))


@pytest.mark.parametrize("stride", [(2, 2), (1, 2)])
def test_the_block_on_the_way_up(stride):
    torch.manual_seed(0)
    block, x = ResidualUpBlock(2, 6, 3, stride), torch.randn(2, 6, 3, 2)
    skip = torch.randn(2, 3, 3 * stride[0], 4)
    assert block.up.bias is None
    up = torch.nn.functional.conv_transpose2d(x, block.up.weight, stride=stride)
    torch.testing.assert_close(block(x, skip), block.block(torch.cat([up, skip], 1)))
