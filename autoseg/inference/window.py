"""Sliding-window prediction of one preprocessed volume: tiles x mirrors x folds in batches, Gaussian-weighted mean.

Source: sliding-window prediction with mirroring, Isensee et al. 2021 (nnU-Net v2 rules). Logits are averaged over
mirrors, folds and tiles. Deviations: the Gaussian stays in separable factors (see `tiles`), and the mean is kept in
float32 where nnU-Net keeps float16.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.devices import choose_device, choose_precision, is_out_of_memory
from autoseg.errors import UserError
from autoseg.inference.tiles import Tile, make_tiles, mirror_combinations, padding
from autoseg.watching import watched

log = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]
Activation = Literal["softmax", "sigmoid"]
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VOXELS_PER_CALL = {"cpu": 2**18, "mps": 2**20, "cuda": 2**22}
LARGEST_FLOAT32_SUM = 2**31  # values; above this the sum is kept in float16, as nnU-Net always does


@dataclass(frozen=True)
class Mean:
    """The mean over tiles, mirrors and folds: logits (K, Z, Y, X) and, when asked for, activated outputs likewise."""

    logits: Tensor
    probabilities: Tensor | None = None


def sliding_window_logits(
    network: Network,
    image: Tensor,
    patch_size: Sequence[int],
    *,
    num_outputs: int,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "auto",
    tile_batch: int | None = None,
) -> Tensor:
    """Return the logits (K, Z, Y, X) of one network for an image (C, Z, Y, X); see `sliding_window`."""
    return sliding_window(
        [network], image, patch_size, num_outputs=num_outputs, step_size=step_size, mirror_axes=mirror_axes,
        device=device, precision=precision, tile_batch=tile_batch,
    ).logits  # fmt: skip


def sliding_window(
    networks: Sequence[Network],
    image: Tensor,
    patch_size: Sequence[int],
    *,
    num_outputs: int,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "auto",
    tile_batch: int | None = None,
    activation: Activation | None = None,
) -> Mean:
    """Return the mean over tiles, all mirror combinations and all `networks` for an image (C, Z, Y, X).

    Every network maps (B, C, *S) to logits (B, num_outputs, *S), S = `patch_size` of length 3, or 2: then every slice
    is segmented by itself. `mirror_axes` count the axes of the patch. `tile_batch` is the number of patches in one call
    (tiles x mirrors), None chooses by the device; it changes the speed, not the result. `activation` adds the mean of
    the activated outputs. When the GPU is full the batch is halved, then the sums move to the main memory, and work
    goes on from the same tile. What overflows in a reduced precision is computed again in float32, with a warning.

    Raises: UserError when a single patch does not fit or the output is not finite.
    """
    if not 0 < step_size <= 1:
        raise UserError(f"step_size must be above 0 and at most 1, got {step_size}")
    chosen = choose_device(device)
    reduced = choose_precision(precision, chosen)
    for name in dict.fromkeys((reduced, "fp32")):
        run = _Run(networks, patch_size, mirror_axes, chosen, FORMATS[name], num_outputs, activation, tile_batch)
        mean = run(image, step_size)
        if bool(torch.isfinite(mean.logits.sum(dtype=torch.float32))) or bool(torch.isfinite(mean.logits).all()):
            return mean
        del run, mean  # the next one needs as much memory
        if not bool(torch.isfinite(image).all()):
            break
        if name != "fp32":
            log.warning("the network's output is not finite in %s: computed again in fp32", name)
    raise UserError(
        "the network's output is not finite", mend="look for NaN or huge values in the image, or train the model again"
    )


def patches_per_call(patch_size: Sequence[int], device: torch.device) -> int:
    """Return how many patches go through the network at once.

    torch convolves a single small volume on the CPU without oneDNN, three to four times slower than each of two.
    """
    voxels = torch.Size(patch_size).numel()
    smallest = 2 if device.type == "cpu" and voxels <= 2 * VOXELS_PER_CALL["cpu"] else 1
    return max(smallest, VOXELS_PER_CALL[device.type] // voxels)


class _Run:
    """One pass over one volume; holds the batch size and where the sums lie, which may change on the way."""

    def __init__(
        self,
        networks: Sequence[Network],
        patch_size: Sequence[int],
        mirror_axes: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        num_outputs: int,
        activation: Activation | None,
        tile_batch: int | None,
    ):
        self.networks = networks
        self.patch_size = tuple(patch_size)
        self.mirrors = mirror_combinations(mirror_axes)
        self.device = device
        self.dtype = dtype
        self.num_outputs = num_outputs
        self.activation = activation
        self.batch = tile_batch or patches_per_call(self.patch_size, device)

    @torch.inference_mode()
    def __call__(self, image: Tensor, step_size: float) -> Mean:
        """Return the mean for an image (C, Z, Y, X)."""
        pads = padding(image.shape[1:], self.patch_size)
        padded = F.pad(image, [amount for pad in reversed(pads) for amount in pad]) if any(map(any, pads)) else image
        padded = _to_device(padded, self.device)
        sums = _Sums(self.num_outputs, tuple(padded.shape[1:]), self.device, count=2 if self.activation else 1)
        tiles = make_tiles(padded.shape[1:], self.patch_size, step_size)
        done = 0
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            while done < len(tiles):
                chunk = tiles[done : done + max(1, self.batch // len(self.mirrors))]
                with watched(f"tile {done + 1} of {len(tiles)}", kind=f"tiles {self.patch_size}"):
                    fits = self._fits(padded, chunk, sums)
                if fits:
                    done += len(chunk)
                else:
                    self._make_room(sums)
        inside = [slice(before, before + size) for (before, _), size in zip(pads, image.shape[1:], strict=True)]
        return Mean(*(total[(slice(None), *inside)] for total in sums.totals))

    def _fits(self, image: Tensor, tiles: Sequence[Tile], sums: _Sums) -> bool:
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
        share = 1.0 / (len(self.mirrors) * len(self.networks))
        totals: list[Tensor] = []
        for mirrors in _chunks(self.mirrors, max(1, self.batch // len(tiles))):
            flipped = [_flip(patches, axes) for axes in mirrors]
            stacked = torch.cat(flipped) if len(flipped) > 1 else flipped[0]
            for network in self.networks:
                for axes, output in zip(mirrors, network(stacked).float().chunk(len(mirrors)), strict=True):
                    for position, value in enumerate(self._outputs(output)):
                        if position == len(totals):
                            totals.append(torch.zeros_like(value))
                        totals[position].add_(_flip(value, axes), alpha=share)
        return [total.reshape(len(tiles), self.num_outputs, *tiles[0].extent) for total in totals]

    def _outputs(self, logits: Tensor) -> list[Tensor]:
        if self.activation is None:
            return [logits]
        return [logits, logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()]

    def _make_room(self, sums: _Sums) -> None:
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


class _Sums:
    """Weighted sums over the tiles, (K, Z, Y, X) each."""

    def __init__(self, num_outputs: int, shape: tuple[int, ...], device: torch.device, *, count: int):
        size = (num_outputs, *shape)
        self._vectors: dict[tuple[int, int], Tensor] = {}
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
            for total, value in zip(self.totals, values, strict=True):
                total[(slice(None), *tile.index)].add_(value)

    def _window(self, tile: Tile) -> Tensor:
        """Return the weights (Z, Y, X) of a tile; the vectors are copied to the device once per axis and position."""
        vectors = []
        for axis, (where, vector) in enumerate(zip(tile.index, tile.weights, strict=True)):
            key = (axis, where.start)
            if key not in self._vectors:
                self._vectors[key] = torch.from_numpy(vector).to(self.totals[0].device)
            vectors.append(self._vectors[key])
        return vectors[0][:, None, None] * vectors[1][:, None] * vectors[2]

    def move_to_cpu(self) -> bool:
        """Move the sums to the main memory; False if they are there already."""
        if self.totals[0].device.type == "cpu":
            return False
        log.warning("the device is full: keeping the sums in main memory")
        self.totals = [total.cpu() for total in self.totals]
        self._vectors = {}
        return True


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
