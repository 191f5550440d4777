"""Weighted sums over tiles, of those rows of the volume alone that tiles still reach."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from autoseg.devices import is_out_of_memory
from autoseg.inference.tiles import Tile

log = logging.getLogger(__name__)

LARGEST_FLOAT32_SUM = 2**31  # values; above this a sum is kept in float16, as nnU-Net always does


class Sums:
    """Sums (K, Z, Y, X) over tiles, `count` of them; along one axis only `depth` rows from row `first` are there."""

    def __init__(
        self,
        num_outputs: int,
        shape: Sequence[int],
        device: torch.device,
        *,
        count: int,
        along: int = 0,
        depth: int | None = None,
    ):
        self.first = 0
        self._along = along
        self._vectors: dict[tuple[int, int], Tensor] = {}
        size = [num_outputs, *shape]
        size[along + 1] = min(shape[along], shape[along] if depth is None else depth)
        dtype = torch.float32 if torch.Size(size).numel() <= LARGEST_FLOAT32_SUM else torch.float16
        try:
            self.totals = [torch.zeros(size, dtype=dtype, device=device) for _ in range(count)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.totals = [torch.zeros(size, dtype=dtype) for _ in range(count)]

    def add(self, tiles: Sequence[Tile], outputs: Sequence[Tensor]) -> None:
        """Add outputs (T, K, Z, Y, X), one tensor per sum; nothing is added unless everything fits."""
        device = self.totals[0].device
        weighted = []
        for position, tile in enumerate(tiles):
            window = self._window(tile)
            weighted.append([output[position].to(device) * window for output in outputs])
        for tile, values in zip(tiles, weighted, strict=True):
            place = [slice(None), *tile.index]
            rows = tile.index[self._along]
            place[self._along + 1] = slice(rows.start - self.first, rows.stop - self.first)
            for total, value in zip(self.totals, values, strict=True):
                total[tuple(place)].add_(value)

    def rows(self, stop: int) -> list[Tensor]:
        """Return views of the rows from `first` to `stop` of every sum."""
        return [self._part(total, 0, stop - self.first) for total in self.totals]

    def release(self, first: int) -> None:
        """Forget the rows before `first`: the others move down in steps that do not overlap, which needs no memory."""
        step = first - self.first
        if step <= 0:
            return
        for total in self.totals:
            depth = total.shape[self._along + 1]
            for start in range(0, depth - step, step):
                size = min(step, depth - step - start)
                self._part(total, start, size).copy_(self._part(total, start + step, size))
            self._part(total, max(0, depth - step), min(step, depth)).zero_()
        self.first = first

    def move_to_cpu(self) -> bool:
        """Move the sums to the main memory; False if they are there already."""
        if self.totals[0].device.type == "cpu":
            return False
        log.warning("the device is full: keeping the sums in main memory")
        moved = [total.cpu() for total in self.totals]
        for total in self.totals:  # rows that were handed out, and are done with, may still be held: they keep nothing
            total.untyped_storage().resize_(0)
        self.totals = moved
        self._vectors = {}
        return True

    def _part(self, total: Tensor, start: int, size: int) -> Tensor:
        return total.narrow(self._along + 1, start, size)

    def _window(self, tile: Tile) -> Tensor:
        """Return the weights (Z, Y, X) of a tile; the vectors are copied to the device once per axis and position."""
        vectors = []
        for axis, (where, vector) in enumerate(zip(tile.index, tile.weights, strict=True)):
            key = (axis, where.start)
            if key not in self._vectors:
                self._vectors[key] = torch.from_numpy(vector).to(self.totals[0].device)
            vectors.append(self._vectors[key])
        return vectors[0][:, None, None] * vectors[1][:, None] * vectors[2]
