"""Local and dilated groups: who is in them, the way back, padding, reach, cost, symmetries."""

import pytest
import torch
from autoseg.architectures.blocks.dilated_attention import (
    DilatedBlock,
    DilatedStage,
    GroupAttention,
    fit_group,
    join_groups,
    key_mask,
    split_groups,
)
from autoseg.architectures.blocks.patch_merging import pad_to_multiple

GRID, GROUP = (4, 16, 16), (2, 8, 8)


def attention(width=4, heads=2, group=GROUP, *, dilated):
    torch.manual_seed(0)
    return GroupAttention(width, heads, group, dilated=dilated)


def test_the_groups_of_a_line_of_tokens():
    x = torch.arange(12.0).reshape(1, 2, 6, 1)
    local = split_groups(x, (1, 3), dilated=False)[..., 0].tolist()
    dilated = split_groups(x, (1, 3), dilated=True)[..., 0].tolist()
    assert local == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert dilated == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert split_groups(x, (2, 3), dilated=True)[0, :, 0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(("sizes", "group"), [((4, 6), (2, 3)), ((4, 16, 16), GROUP), ((3, 5, 9), (2, 4, 4))])
def test_ungrouping_undoes_grouping(sizes, group, dilated):
    x = torch.randn(2, *sizes, 3)
    padded = pad_to_multiple(x, group)
    back = join_groups(split_groups(padded, group, dilated=dilated), group, padded.shape[1:-1], dilated=dilated)
    assert torch.equal(back, padded)
    assert torch.equal(back[(slice(None), *(slice(size) for size in sizes))], x)


@pytest.mark.parametrize("dilated", [False, True])
def test_reach(dilated):
    layer, x = attention(dilated=dilated), torch.randn(1, *GRID, 4, requires_grad=True)
    layer(x)[0, 0, 0, 0].sum().backward()
    reached = (x.grad[0].abs().sum(-1) > 0).nonzero()
    assert len(reached) == 128
    if dilated:
        assert (reached % 2 == 0).all()
    else:
        assert reached.amax(0).tolist() == [1, 7, 7]


def test_local_is_dilated_where_the_grid_is_one_group():
    x = torch.randn(2, *GROUP, 4)
    torch.testing.assert_close(attention(dilated=False)(x), attention(dilated=True)(x))
    larger = torch.randn(2, *GRID, 4)
    assert not torch.allclose(attention(dilated=False)(larger), attention(dilated=True)(larger))


def test_both_kinds_cost_the_same():
    shapes = [split_groups(torch.zeros(1, *GRID, 4), GROUP, dilated=dilated).shape for dilated in (False, True)]
    assert shapes[0] == shapes[1] == (8, 128, 4)  # 1024 tokens with 128 keys each


@pytest.mark.parametrize("dilated", [False, True])
def test_padding_is_not_attended_to(dilated):
    sizes, group = (3, 5, 9), (2, 4, 4)
    layer, x = attention(group=group, dilated=dilated), torch.randn(1, *sizes, 4)
    mask = key_mask(sizes, group, dilated=dilated)
    assert mask.sum() == 3 * 5 * 9
    assert mask.any(1).all()  # every group has a token, so no softmax is over nothing
    assert key_mask((4, 8, 8), group, dilated=dilated) is None
    # by hand: every group over its own real tokens
    tokens = split_groups(pad_to_multiple(x, group), group, dilated=dilated)
    wanted = torch.zeros_like(tokens)
    for number, real in enumerate(mask):
        q, k, v = layer.qkv(tokens[number, real]).unflatten(-1, (3, 2, 2)).permute(1, 2, 0, 3)
        weights = (q @ k.mT / 2**0.5).softmax(-1)
        wanted[number, real] = layer.proj((weights @ v).transpose(0, 1).flatten(1))
    wanted = join_groups(wanted, group, (4, 8, 12), dilated=dilated)[:, :3, :5, :9]
    torch.testing.assert_close(layer(x), wanted)
    assert layer(x).isfinite().all()


@pytest.mark.parametrize(("dilated", "step"), [(True, (2, 2, 2)), (True, (1, 1, 1)), (False, (2, 8, 8))])
def test_shifts_that_map_groups_to_groups_commute(dilated, step):
    """Dilated: by one interval, 2 here, within each group, by less from group to group; local: by one group."""
    layer, x = attention(dilated=dilated), torch.randn(1, *GRID, 4)
    for axis, by in enumerate(step, start=1):
        torch.testing.assert_close(layer(x.roll(by, axis)), layer(x).roll(by, axis))


def test_other_shifts_do_not_commute():
    layer, x = attention(dilated=False), torch.randn(1, *GRID, 4)
    assert not torch.allclose(layer(x.roll(1, 3)), layer(x).roll(1, 3))


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [((4, 16, 16), (2, 8, 8)), ((1, 16, 16), (1, 8, 8)), ((4, 4, 4), (4, 4, 4)), ((4, 4, 16), (2, 4, 8))],
)
def test_groups_fit_the_map(sizes, wanted):
    assert fit_group(sizes, GROUP) == wanted
    assert fit_group(sizes[1:], GROUP[1:]) == (wanted[1:] if sizes[0] > 1 or sizes[1] > 8 else sizes[1:])


def test_the_block_normalises_before_and_adds():
    torch.manual_seed(0)
    block, x = DilatedBlock(4, 2, (2, 2), dilated=True).double(), torch.randn(2, 4, 6, 4).double()
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_a_stage_alternates_and_serves_any_size():
    torch.manual_seed(0)
    stage = DilatedStage(4, 3, 2, (8, 8)).eval()
    assert [block.attn.dilated for block in stage.blocks] == [False, True, False]
    for sizes in ((4, 4), (16, 16), (9, 20), (4, 4)):
        x = torch.randn(1, *sizes, 4)
        assert stage(x).shape == x.shape
        assert torch.equal(stage(x), stage(x))
    assert [block.attn.group for block in stage.blocks] == [(8, 8)] * 3


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide the width 4"):
        attention(heads=3, dilated=False)
