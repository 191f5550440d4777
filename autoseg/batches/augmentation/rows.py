"""Apply one operation to chosen (sample, channel) rows of a batch: in place and in cache on a CPU, batched on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from autoseg.batches.moving import numbers_on

_CPU_ELEMENTS = 2**16  # several small rows at once, a large row alone: it stays in the cache
_CPU_SLAB = 2**20  # 4 MiB of float32: fewer cost more calls, more leave the cache
_GPU_ELEMENTS = 2**24  # bounds a copy of the chosen rows to 64 MiB


def chunks(count: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Cut 0..count-1, items of so many elements each, into slices that suit the device."""
    limit = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
    size = max(1, limit // elements)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def slabs(count: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Cut 0..count-1 rows of one item, of so many elements each, into slices that stay in the cache of a CPU."""
    size = max(1, _CPU_SLAB // elements) if device.type == "cpu" else count
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def apply_to_rows(
    image: Tensor, rows: Sequence[int], values: Sequence[Sequence[float]], operation: Callable[..., None]
) -> None:
    """Call `operation(block, value, ...)` for the chosen rows of `image` (B, C, *S), in place.

    A row is sample * C + channel. The block is (n, V) with all voxels of a row in V; each value is a tensor (n, 1),
    taken from the columns of `values`, one entry of which belongs to one row.
    """
    if not rows:
        return
    flat, device = image.view(image.shape[0] * image.shape[1], -1), image.device
    table, places = numbers_on(device, values, torch.float32), numbers_on(device, rows, torch.int64)
    for part in chunks(len(rows), flat.shape[1], device):
        chosen = rows[part]
        columns = table[part].split(1, dim=1)
        if len(chosen) == 1:
            operation(flat[chosen[0] : chosen[0] + 1], *columns)
            continue
        index = places[part]
        block = flat.index_select(0, index)
        operation(block, *columns)
        flat.index_copy_(0, index, block)
