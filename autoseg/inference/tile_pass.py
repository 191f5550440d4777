"""One pass over one volume: tiles x mirrors x networks in batches, added up, handed out as rows are finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.devices import choose_device, is_out_of_memory
from autoseg.errors import UserError
from autoseg.inference.sums import Sums
from autoseg.inference.tiles import Tile, make_tiles, mirror_combinations, padding
from autoseg.watching import watched

log = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]
Activation = Literal["softmax", "sigmoid"]
VOXELS_PER_CALL = {"cpu": 2**18, "mps": 2**20, "cuda": 2**22}
VALUES_WORTH_HANDING_OUT = 2**24  # of a sum: fewer finished rows wait for more


@dataclass(frozen=True, eq=False)
class Window:
    """One prediction by sliding window, with what `window.sliding_window` takes.

    `along` is the axis of (Z, Y, X) along which rows are handed out as they are finished; None: all at once.
    """

    networks: Sequence[Network]
    image: Tensor
    patch_size: Sequence[int]
    num_outputs: int
    step_size: float = 0.5
    mirror_axes: Sequence[int] = ()
    device: str | torch.device = "cpu"
    precision: str = "auto"
    tile_batch: int | None = None
    activation: Activation | None = None
    along: int | None = None


@dataclass(frozen=True)
class Rows:
    """Finished rows of the mean along one axis, from row `first` on; those before `fresh` were handed out already.

    `means` are views (K, Z, Y, X) that hold until the next rows are asked for: logits, then activated outputs if these
    are wanted. The last row comes twice, so that what lies between two rows can be interpolated.
    """

    first: int
    fresh: int
    means: tuple[Tensor, ...]


@dataclass(frozen=True)
class Layout:
    """Padding, shape and tiles of the padded volume, in their order along an axis, and what sums along it take."""

    pads: list[tuple[int, int]]
    shape: tuple[int, ...]
    tiles: list[Tile]
    worth: int  # rows
    depth: int  # rows
    bytes: int


class NotFinite(Exception):
    """The mean that a pass computes, its `source`, holds NaN or infinite values."""

    def __init__(self, source: Pass):
        super().__init__()
        self.source = source


def patches_per_call(patch_size: Sequence[int], device: torch.device) -> int:
    """Return how many patches go through the network at once.

    torch convolves a single small volume on the CPU without oneDNN, three to four times slower than each of two.
    """
    voxels = torch.Size(patch_size).numel()
    smallest = 2 if device.type == "cpu" and voxels <= 2 * VOXELS_PER_CALL["cpu"] else 1
    return max(smallest, VOXELS_PER_CALL[device.type] // voxels)


class Pass:
    """One pass over one volume; the batch size, and where the sums lie, may change on the way."""

    def __init__(self, window: Window, dtype: torch.dtype):
        self.window = window
        self.patch_size = tuple(window.patch_size)
        self.mirrors = mirror_combinations(window.mirror_axes)
        self.device = self.sums_device = choose_device(window.device)
        self.dtype = dtype
        self.batch = window.tile_batch or patches_per_call(self.patch_size, self.device)

    @torch.inference_mode()
    def rows(self) -> Iterator[Rows]:
        """Yield the mean for the image as rows along the axis that the window names. Raises NotFinite."""
        axis, image, layout = self._axis, self.window.image, self.layout()
        pads, tiles = layout.pads, layout.tiles
        padded = F.pad(image, [amount for pad in reversed(pads) for amount in pad]) if any(map(any, pads)) else image
        padded = _to_device(padded, self.device)
        sums = Sums(
            self.window.num_outputs, layout.shape, self.sums_device, count=self._count, along=axis, depth=layout.depth
        )  # fmt: skip
        inside = [slice(before, before + size) for (before, _), size in zip(pads, image.shape[1:], strict=True)]
        done, handed = 0, 0
        while done < len(tiles):
            done = self._add_until(handed + layout.worth, padded, tiles, done, sums, axis)
            finished = tiles[done].index[axis].start if done < len(tiles) else layout.shape[axis]
            yield self._handed(sums, handed, finished, inside, axis)
            sums.release(finished - 1)
            handed = finished

    def layout(self) -> Layout:
        """Return where the tiles stand, and how many rows are worth handing out and kept."""
        axis, size = self._axis, self.window.image.shape[1:]
        pads = padding(size, self.patch_size)
        shape = tuple(length + sum(pad) for length, pad in zip(size, pads, strict=True))
        tiles = make_tiles(shape, self.patch_size, self.window.step_size)
        tiles.sort(key=lambda tile: tile.index[axis].start)
        row = self.window.num_outputs * torch.Size(shape).numel() // shape[axis]
        worth = shape[axis] if self.window.along is None else max(1, VALUES_WORTH_HANDING_OUT // row)
        depth = min(shape[axis], 1 + worth + _reach(tiles, axis, self._tiles_per_call))  # the last row handed out stays
        return Layout(pads, shape, tiles, worth, depth, 4 * self._count * depth * row)

    @property
    def _axis(self) -> int:
        return self.window.along or 0

    @property
    def _count(self) -> int:
        return 2 if self.window.activation else 1

    def _handed(self, sums: Sums, fresh: int, stop: int, inside: Sequence[slice], axis: int) -> Rows:
        """Return the rows of the sums before `stop`, without padding; `fresh` and `stop` count the padded rows."""
        before = inside[axis].start
        place = list(inside)
        place[axis] = slice(max(0, before - sums.first), min(stop, inside[axis].stop) - sums.first)
        means = tuple(total[(slice(None), *place)] for total in sums.rows(stop))
        logits = means[0]
        if not bool(torch.isfinite(logits.sum(dtype=torch.float32))) and not bool(torch.isfinite(logits).all()):
            raise NotFinite(self)
        return Rows(max(0, sums.first - before), max(0, fresh - before), means)

    @property
    def _tiles_per_call(self) -> int:
        return max(1, self.batch // len(self.mirrors))

    def _add_until(self, wanted: int, image: Tensor, tiles: Sequence[Tile], done: int, sums: Sums, axis: int) -> int:
        """Add tiles until the rows before `wanted` are finished, or all tiles; returns how many are done then."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            while done < len(tiles) and tiles[done].index[axis].start < wanted:
                chunk = tiles[done : done + self._tiles_per_call]
                with watched(f"tile {done + 1} of {len(tiles)}", kind=f"tiles {self.patch_size}"):
                    fits = self._fits(image, chunk, sums)
                if fits:
                    done += len(chunk)
                else:
                    self._make_room(sums)
        return done

    def _fits(self, image: Tensor, tiles: Sequence[Tile], sums: Sums) -> bool:
        """Predict and add some tiles; False, with the sums unchanged, if the device's memory is full."""
        try:
            sums.add(tiles, self._forward(image, tiles))
        except RuntimeError as error:
            if is_out_of_memory(error):
                return False
            raise
        return True

    def _forward(self, image: Tensor, tiles: Sequence[Tile]) -> list[Tensor]:
        """Return the mean outputs (T, K, Z, Y, X) of some tiles over mirrors and networks, in float32."""
        shape = (len(tiles), image.shape[0], *self.patch_size)
        patches = torch.stack([image[(slice(None), *tile.index)] for tile in tiles]).reshape(shape)
        patches = patches.to(self.device, non_blocking=True)
        share = 1.0 / (len(self.mirrors) * len(self.window.networks))
        totals: list[Tensor] = []
        for mirrors in _chunks(self.mirrors, max(1, self.batch // len(tiles))):
            flipped = [_flip(patches, axes) for axes in mirrors]
            stacked = torch.cat(flipped) if len(flipped) > 1 else flipped[0]
            for network in self.window.networks:
                for axes, output in zip(mirrors, network(stacked).float().chunk(len(mirrors)), strict=True):
                    for position, value in enumerate(self._outputs(output)):
                        if position == len(totals):
                            totals.append(torch.zeros_like(value))
                        totals[position].add_(_flip(value, axes), alpha=share)
        return [total.reshape(len(tiles), self.window.num_outputs, *tiles[0].extent) for total in totals]

    def _outputs(self, logits: Tensor) -> list[Tensor]:
        if self.window.activation is None:
            return [logits]
        return [logits, logits.softmax(1) if self.window.activation == "softmax" else logits.sigmoid()]

    def _make_room(self, sums: Sums) -> None:
        if self.batch > 1:
            self.batch //= 2
            log.warning("the device is full: going on with %d patch(es) in one call", self.batch)
        elif not sums.move_to_cpu():
            raise UserError(
                f"the device's memory is too small for one patch of {self.patch_size}",
                mend="close other programs that use the device, or use --device cpu",
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _reach(tiles: Sequence[Tile], axis: int, count: int) -> int:
    """Return over how many rows any `count` tiles in a row reach."""
    last = len(tiles) - 1
    return max(
        tiles[min(first + count - 1, last)].index[axis].stop - tile.index[axis].start
        for first, tile in enumerate(tiles)
    )


def _flip(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Flip axes of the patch of (B, C, *S)."""
    return values.flip([axis + 2 for axis in axes]) if axes else values


def _chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return the values on the device, or where they are if they do not fit."""
    try:
        return values.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return values
