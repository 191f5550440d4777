"""Fixed positions: which channels say which axis."""

import math

import pytest
import torch
from autoseg.architectures.blocks.sinusoidal_positions import add_positions, sinusoidal_positions


def test_by_hand():
    table = sinusoidal_positions(8, (3, 5))  # 4 channels per axis, frequencies 1 and 10000^(-1/2) = 0.01
    row, column = 2, 3
    wanted = [f(x) for position in (row, column) for f in (math.sin, math.cos) for x in (position, position / 100)]
    assert table[:, row, column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_row_zero_has_sines_of_zero_and_cosines_of_one():
    table = sinusoidal_positions(16, (4, 4))
    assert (table[:4, 0] == 0).all()
    assert (table[4:8, 0] == 1).all()


def test_columns_differ_in_their_own_half_only():
    table = sinusoidal_positions(16, (4, 4))
    assert torch.equal(table[:8, 2, 1], table[:8, 2, 3])
    assert (table[8:, 2, 1] != table[8:, 2, 3]).all()


@pytest.mark.parametrize(("channels", "axes", "share"), [(8, 3, 4), (12, 3, 4), (7, 2, 4), (6, 2, 4), (1, 3, 2)])
def test_shares_are_even_and_cut(channels, axes, share):
    grid = (2, 3, 4)[:axes]
    table = sinusoidal_positions(channels, grid)
    assert table.shape == (channels, *grid)
    along_first = table.flatten(2)[:, :, 0] if axes > 1 else table
    changing = (along_first[:, 0] != along_first[:, 1]).nonzero().flatten().tolist()
    assert changing == list(range(min(share, channels)))


def test_they_are_added_in_the_precision_of_the_map():
    x = torch.zeros(2, 4, 3, 3, dtype=torch.bfloat16)
    y = add_positions(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[1].float(), sinusoidal_positions(4, (3, 3)), atol=1e-2, rtol=1e-2)
