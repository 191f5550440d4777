"""Patch merging and expanding: order of the neighbours, strides, padding."""

import pytest
import torch
from autoseg.architectures.blocks.patch_merging import (
    PatchExpanding,
    PatchMerging,
    channels_to_space,
    merge_offsets,
    space_to_channels,
)


def test_the_order_of_four_neighbours():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]  # (1, 2, 2, 1), row-major
    assert space_to_channels(x, (2, 2)).flatten().tolist() == [1, 3, 2, 4]
    assert space_to_channels(x, (2, 2), "last_fastest").flatten().tolist() == [1, 2, 3, 4]
    assert merge_offsets((2, 2)) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_the_order_of_eight_neighbours():
    x = torch.arange(8.0).reshape(1, 2, 2, 2, 1)  # the value of offset (d, h, w) is 4d + 2h + w
    assert space_to_channels(x, (2, 2, 2)).flatten().tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert space_to_channels(x, (2, 2, 2), "last_fastest").flatten().tolist() == [*range(8)]
    assert space_to_channels(x, (2, 2, 2), "swin_unetr").flatten().tolist() == [0, 4, 2, 1, 5, 2, 1, 7]
    assert merge_offsets((1, 2, 2), "swin_unetr") == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    with pytest.raises(ValueError, match="order must be one of"):
        merge_offsets((2, 2), "random")


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (4, 4), (2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 1, 4)])
def test_there_and_back(stride):
    sizes = [8, 4, 4][: len(stride)]
    x = torch.randn(2, *sizes, 5, generator=torch.Generator().manual_seed(0))
    merged = space_to_channels(x, stride, "last_fastest")
    assert merged.shape[1:-1] == tuple(size // step for size, step in zip(sizes, stride, strict=True))
    assert torch.equal(channels_to_space(merged, stride), x)


def test_odd_maps_are_padded_with_zeros():
    x = torch.ones(1, 3, 4, 1)
    merged = space_to_channels(x, (2, 2))
    assert merged.shape == (1, 2, 2, 4)
    assert merged[0, 1, 0].tolist() == [1, 0, 1, 0]
    assert PatchMerging(2, (2, 2, 2))(torch.randn(1, 3, 5, 4, 2)).shape == (1, 2, 3, 2, 4)


@pytest.mark.parametrize("stride", [(2, 2), (2, 2, 2), (1, 2, 2)])
def test_shapes_and_parameters(stride):
    block = torch.tensor(stride).prod().item()
    merge, expand = PatchMerging(6, stride), PatchExpanding(6, stride)
    assert sum(p.numel() for p in merge.parameters()) == 2 * 6 * block + 6 * block * 12
    assert sum(p.numel() for p in expand.parameters()) == 6 * 3 * block + 2 * 3
    assert merge.state_dict().keys() == {"norm.weight", "norm.bias", "reduction.weight"}
    assert expand.state_dict().keys() == {"expand.weight", "norm.weight", "norm.bias"}
    x = torch.randn(2, *[4] * len(stride), 6)
    assert expand(merge(torch.cat([x], 0))[..., :6]).shape == (2, *[4] * len(stride), 3)
    assert PatchExpanding(6, stride, out=6)(x).shape == (2, *(4 * step for step in stride), 6)


def test_expanding_by_hand():
    expand = PatchExpanding(4, (2, 2)).double()
    x = torch.randn(1, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = (expand.expand.weight @ x.flatten()).reshape(2, 2, 2)  # (row, column, channel)
    wanted = torch.nn.functional.layer_norm(parts, (2,))
    torch.testing.assert_close(expand(x)[0], wanted)
