"""Window attention: windows, shift, mask, bias, against attention computed token by token."""

import math

import pytest
import torch
from autoseg.architectures.blocks.window_attention import (
    SwinBlock,
    SwinStage,
    WindowAttention,
    fit_window,
    join_windows,
    relative_position_index,
    split_windows,
    window_mask,
)
from network_specs import stir


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("sizes", "window"), [((6, 4), (3, 2)), ((4, 6, 8), (2, 3, 4)), ((2, 5), (2, 5))])
def test_splitting_and_joining(sizes, window):
    x = randn(2, *sizes, 3)
    windows = split_windows(x, window)
    assert windows.shape == (2 * math.prod(sizes) // math.prod(window), math.prod(window), 3)
    assert torch.equal(join_windows(windows, window, sizes), x)
    corner = x[(0, *(slice(edge) for edge in window))]
    assert torch.equal(windows[0], corner.reshape(-1, 3))


def test_the_position_index_by_hand():
    assert relative_position_index((2, 2)).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    index = relative_position_index((3, 4, 5))
    assert index.unique().numel() == 5 * 7 * 9  # every offset has a row of its own
    assert (index.min(), index.max()) == (0, 5 * 7 * 9 - 1)


def test_a_shrunken_window_keeps_the_rows_of_its_offsets():
    whole, part = relative_position_index((3, 3)), relative_position_index((2, 3), (3, 3))
    assert torch.equal(part, whole[:6, :6])  # rows 0 and 1 of the window
    narrow = relative_position_index((3, 2), (3, 3))
    keep = [0, 1, 3, 4, 6, 7]
    assert torch.equal(narrow, whole[keep][:, keep])


def test_the_window_fits_the_map():
    assert fit_window((12, 7, 3), (7, 7, 7), shifted=True) == ((7, 7, 3), (3, 0, 0))
    assert fit_window((12, 7, 3), (7, 7, 7), shifted=False) == ((7, 7, 3), (0, 0, 0))


def test_the_mask_by_hand():
    # one axis of 4, windows of 2, rolled by 1: places 1 2 | 3 0, and 3 does not see 0
    mask = window_mask((4, 2), (4, 2), (2, 2), (1, 0))
    assert mask.shape == (2, 4, 4)
    assert not mask[0].any()
    assert mask[1].tolist() == [[False, False, True, True]] * 2 + [[True, True, False, False]] * 2
    assert window_mask((4, 4), (4, 4), (2, 2), (0, 0)) is None
    assert window_mask((3, 4), (4, 4), (2, 2), (0, 0)) is None
    hidden = window_mask((3, 4), (4, 4), (2, 2), (0, 0), hide_padding=True)
    assert hidden.sum((0, 1)).tolist() == [0, 0, 8, 8]  # of the two lower windows, the second row is padding


def reference(block, x):
    """Attention of every token by its own coordinates: same window of the shifted grid, no wrapping."""
    sizes = x.shape[1:-1]
    window, shift = fit_window(sizes, block.window, shifted=block.shifted)
    layer, out = block.attn, torch.empty_like(x)
    q, k, v = layer.qkv(x).chunk(3, -1)
    places = list(torch.cartesian_prod(*(torch.arange(size) for size in sizes)).tolist())
    home = {tuple(p): tuple((a - s) // w for a, s, w in zip(p, shift, window, strict=True)) for p in places}
    table = layer.relative_position_bias_table.reshape(*(2 * w - 1 for w in layer.window), layer.heads)
    part = x.shape[-1] // layer.heads
    for here in places:
        near = [there for there in places if home[tuple(there)] == home[tuple(here)]]
        heads = []
        for head in range(layer.heads):
            channels = slice(head * part, head * part + part)
            logits = torch.stack(
                [
                    q[(0, *here, channels)] @ k[(0, *there, channels)] / math.sqrt(part)
                    + table[(*(a - b + w - 1 for a, b, w in zip(here, there, layer.window, strict=True)), head)]
                    for there in near
                ]
            )
            values = torch.stack([v[(0, *there, channels)] for there in near])
            heads.append(logits.softmax(0) @ values)
        out[(0, *here)] = layer.proj(torch.cat(heads))
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("sizes", "window"), [((6, 3), (3, 3)), ((4, 6, 2), (2, 3, 4)), ((4, 4), (2, 2))])
def test_equal_to_attention_token_by_token(sizes, window, shifted):
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window, shift=shifted).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = randn(1, *sizes, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block.attend(x), reference(block, x))


def test_padding_takes_part_unless_hidden():
    torch.manual_seed(0)
    open_, closed = SwinBlock(8, 2, (2, 2)).double(), SwinBlock(8, 2, (2, 2), mask_padding=True).double()
    closed.load_state_dict(open_.state_dict())
    x = randn(1, 3, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(closed.attend(x), reference(closed, x))
        padded = torch.cat([x, torch.zeros(1, 1, 4, 8, dtype=torch.float64)], 1)
        torch.testing.assert_close(open_.attend(x), reference(open_, padded)[:, :3])


@pytest.mark.parametrize("mask_padding", [False, True])
def test_any_size_and_samples_apart(mask_padding):
    torch.manual_seed(0)
    stage = SwinStage(8, 2, 2, (4, 4, 4), mask_padding=mask_padding).eval()
    for sizes in ((8, 8, 8), (5, 9, 3), (1, 2, 6)):
        x = randn(2, *sizes, 8)
        with torch.no_grad():
            y = stage(x)
            assert y.shape == x.shape
            torch.testing.assert_close(y[1:], stage(x[1:]))


def test_windows_move_with_their_content():
    torch.manual_seed(0)
    block, x = SwinBlock(8, 2, (3, 3)).eval(), randn(1, 6, 6, 8)
    swapped = torch.cat([x[:, 3:], x[:, :3]], 1)
    y = block(x)
    torch.testing.assert_close(block(swapped), torch.cat([y[:, 3:], y[:, :3]], 1))
    shifted = SwinBlock(8, 2, (3, 3), shift=True).eval()
    assert (shifted(swapped) - torch.cat([shifted(x)[:, 3:], shifted(x)[:, :3]], 1)).abs().max() > 1e-3


def test_the_second_block_reaches_the_next_window():
    torch.manual_seed(0)
    stage, x = SwinStage(8, 2, 2, (4, 4)).eval(), randn(1, 8, 8, 8)
    assert [block.shifted for block in stage.blocks] == [False, True]
    other = x.clone()
    other[0, 0, 0] = -other[0, 0, 0]
    first = (stage.blocks[0](x) - stage.blocks[0](other)).abs().amax(-1)[0] > 1e-6
    assert first[:4, :4].all()
    assert not first[4:].any()
    assert not first[:, 4:].any()
    both = (stage(x) - stage(other)).abs().amax(-1)[0] > 1e-6
    assert both[:6, :6].all()
    assert not both[6:].any()


def test_parameters_and_their_names():
    block = SwinBlock(96, 3, (7, 7))
    assert sum(p.numel() for p in block.parameters()) == 4 * 96 + 13 * 13 * 3 + 4 * 96 * 96 + 4 * 96 + 8 * 96 * 96 + 480
    assert {name.split(".")[0] for name in block.state_dict()} == {"norm1", "attn", "norm2", "mlp"}
    attention = WindowAttention(12, 3, (2, 2), qkv_bias=False)
    assert attention.state_dict().keys() == {
        "relative_position_bias_table", "qkv.weight", "proj.weight", "proj.bias",
    }  # fmt: skip
    assert 0.01 < block.attn.relative_position_bias_table.std() < 0.03
    with pytest.raises(ValueError, match="heads do not divide"):
        WindowAttention(10, 3, (2, 2))


def test_every_parameter_gets_a_gradient_also_under_bfloat16():
    stage = SwinStage(8, 2, 2, (2, 2), drop=0.1, attention_drop=0.1, drop_path=[0.0, 0.1])
    with torch.autocast("cpu", torch.bfloat16):
        y = stage(randn(2, 4, 5, 8))
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.parameters())


@pytest.mark.parametrize("shift", [False, True])
def test_the_block_normalises_before_and_adds(shift):
    torch.manual_seed(0)
    block, x = stir(SwinBlock(8, 2, (2, 2), shift=shift)), randn(2, 4, 6, 8, dtype=torch.float64)
    normed = block.norm1(x)
    middle = x + torch.cat([reference(block, sample[None]) for sample in normed])
    first, second = block.mlp.fc1, block.mlp.fc2
    wanted = middle + second(torch.nn.functional.gelu(first(block.norm2(middle))))
    torch.testing.assert_close(block(x), wanted)
