"""The blocks of MSCAN: strides of the stem, kernels of strips, attention by hand, branches that begin almost idle."""

import pytest
import torch
from autoseg.architectures.blocks.mscan import SCALE, Block, SpatialAttention, downsample, stem, strip
from torch import nn


def identity(conv):
    """Make a convolution give back what it takes."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        middle = tuple(size // 2 for size in conv.kernel_size)
        for channel in range(conv.out_channels):
            conv.weight[(channel, channel if conv.groups == 1 else 0, *middle)] = 1


@pytest.mark.parametrize(
    ("stride", "strides", "shape"),
    [((4, 4), [(2, 2), (2, 2)], (2, 8, 4, 4)), ((2, 4), [(1, 2), (2, 2)], (2, 8, 8, 4)),
     ((1, 4, 4), [(1, 2, 2), (1, 2, 2)], (2, 8, 16, 4, 4))],
)  # fmt: skip
def test_two_convolutions_share_the_stride_of_the_stem(stride, strides, shape):
    made = stem(3, 8, stride, "batch")
    assert [part.stride for part in made if hasattr(part, "stride")] == strides
    assert made(torch.zeros(2, 3, *[16] * len(stride))).shape == shape


def test_downsampling_is_a_convolution_and_its_norm():
    conv, norm = downsample(4, 6, (2, 2), "batch")
    assert (conv.kernel_size, conv.stride, conv.padding, norm.num_features) == ((3, 3), (2, 2), (1, 1), 6)


def test_strips_lie_along_their_axes_the_last_first():
    assert strip(3, 1, 7) == (1, 7, 1)
    found = [[conv.kernel_size for conv in cascade] for cascade in SpatialAttention(2, 4, (0, 1)).strips]
    assert found == [[(1, 7), (7, 1)], [(1, 11), (11, 1)], [(1, 21), (21, 1)]]
    assert [conv.kernel_size for conv in SpatialAttention(3, 4, (1, 2)).strips[0]] == [(1, 1, 7), (1, 7, 1)]


def test_attention_by_hand():
    """All convolutions are identities: u + 4 z * z with z = GELU(u), as 5 x 5 and three cascades give z each."""
    attention = SpatialAttention(2, 3, (0, 1))
    for module in attention.modules():
        if isinstance(module, nn.Conv2d):
            identity(module)
    u = torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    z = nn.functional.gelu(u)
    torch.testing.assert_close(attention(u), u + 4 * z * z)


def test_a_block_begins_as_nearly_the_identity_and_learns_by_both_branches():
    torch.manual_seed(0)
    block, x = Block(2, 8, 4, (0, 1), "batch", 0.0).train(), torch.randn(2, 8, 6, 6)
    assert [part.unique().tolist() for part in (block.scale1, block.scale2)] == [[pytest.approx(SCALE)]] * 2
    assert block.mlp[0].out_channels == 32
    assert (block(x) - x).abs().max() < 0.1
    with torch.no_grad():
        block.scale2.zero_()
    torch.testing.assert_close(block(x), x + SCALE * block.attention(block.norm1(x)))
    with torch.no_grad():
        block.scale1.zero_()
    assert torch.equal(block(x), x)


def test_three_axes():
    torch.manual_seed(0)
    block = Block(3, 4, 2, (0, 1, 2), "instance", 0.0)
    assert block(torch.randn(1, 4, 5, 6, 7)).shape == (1, 4, 5, 6, 7)
