"""Which case, and where in it: nnU-Net's patch sampling. Source: nnU-Net v2 (Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.batches.settings import StreamSettings

ANNOTATED = -1  # the key of all annotated voxels among the locations, where there is an ignore label


@dataclass(frozen=True)
class Place:
    """Where a patch of the initial size lies in a case."""

    corner: tuple[int, ...]  # lower corner, one entry per axis of the patch; may be negative
    slice: int | None = None  # 2D patches: the slice of the volume


def is_forced(sample: int, settings: StreamSettings) -> bool:
    """Tell whether a sample of a batch is centred on foreground: the last ones are."""
    return sample >= round(settings.batch_size * (1 - settings.foreground_fraction))


def choose_place(
    shape: Sequence[int],
    locations: Mapping[int, np.ndarray],
    settings: StreamSettings,
    *,
    forced: bool,
    ignore: bool,
    generator: np.random.Generator,
) -> Place:
    """Place the initial patch in a case of `shape` (Z, Y, X).

    `locations` maps a class to voxels (N, 3). Forced: a random voxel of a random class that is present. Not forced:
    anywhere, or with an ignore label on a random annotated voxel.
    """
    voxel = _choose_voxel(locations, forced=forced, ignore=ignore, generator=generator)
    flat = len(settings.patch_size) == 2
    chosen_slice = None
    if flat:
        chosen_slice = int(generator.integers(shape[0]) if voxel is None else voxel[0])
        shape, voxel = shape[1:], None if voxel is None else voxel[1:]
    patch = settings.initial_patch_size
    low, high = corner_bounds(shape, initial=patch, final=settings.patch_size)
    if voxel is None:
        corner = generator.integers(low, np.asarray(high) + 1).tolist()
    else:
        corner = [max(int(v) - p // 2, lowest) for v, p, lowest in zip(voxel, patch, low, strict=True)]
    return Place(tuple(corner), chosen_slice)


def corner_bounds(
    shape: Sequence[int], *, initial: Sequence[int], final: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lowest and the highest lower corner, both inclusive, of an initial patch in a volume of `shape`.

    The final patch, in the middle of the initial one, stays inside the volume; a volume smaller than the initial patch
    is padded evenly.
    """
    low, high = [], []
    for size, outer, inner in zip(shape, initial, final, strict=True):
        padding = max(outer - inner, outer - size)
        low.append(-(padding // 2) - padding % 2)
        high.append(size + padding // 2 + padding % 2 - outer)
    return tuple(low), tuple(high)


def _choose_voxel(
    locations: Mapping[int, np.ndarray], *, forced: bool, ignore: bool, generator: np.random.Generator
) -> np.ndarray | None:
    if forced:
        present = sorted(key for key, voxels in locations.items() if len(voxels))
        if len(present) > 1 and ANNOTATED in present:
            present.remove(ANNOTATED)
        key = present[generator.integers(len(present))] if present else None
    else:
        key = ANNOTATED if ignore and len(locations.get(ANNOTATED, ())) else None
    if key is None:
        return None
    voxels = locations[key]
    return voxels[generator.integers(len(voxels))]
