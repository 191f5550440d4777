"""The orders of the cross scan: hand-computed sequences, the way back, symmetries."""

import pytest
import torch
from autoseg.architectures.blocks.cross_scan import cross_merge, cross_scan, scan_count


def test_the_four_orders_of_a_picture():
    x = torch.arange(6.0).reshape(1, 2, 3, 1)  # rows 0 1 2 and 3 4 5
    assert cross_scan(x)[0, :, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_every_axis_of_a_volume_runs_fastest_once():
    x = torch.arange(8.0).reshape(1, 2, 2, 2, 1)
    orders = cross_scan(x)[0, :, :, 0]
    assert orders[:3].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7]]
    assert torch.equal(orders[3:], orders[:3].flip(1))


@pytest.mark.parametrize("sizes", [(3, 4), (1, 5), (2, 3, 4)])
def test_merging_brings_every_position_back(sizes):
    x = torch.randn(2, *sizes, 3)
    scanned = cross_scan(x)
    assert scanned.shape == (2, scan_count(len(sizes)), x[0, ..., 0].numel(), 3)
    for way in range(scanned.shape[1]):
        alone = torch.zeros_like(scanned)
        alone[:, way] = scanned[:, way]
        assert torch.equal(cross_merge(alone, sizes), x)
    torch.testing.assert_close(cross_merge(scanned, sizes), scanned.shape[1] * x)
