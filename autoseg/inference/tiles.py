"""Where tiles stand and how they are weighted.

Source: overlapping tiles and their Gaussian weights, Isensee et al. 2021 (nnU-Net v2 rules).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PEAK = 10.0  # height of the Gaussian in its centre; it cancels in the normalised weights


@dataclass(frozen=True)
class Tile:
    """One position of the patch in the padded volume, with its share of the final mean along every axis.

    `index` are three slices (z, y, x); `weights` three vectors whose outer product, summed over all tiles that cover a
    voxel, is 1.
    """

    index: tuple[slice, slice, slice]
    weights: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the size of the tile (z, y, x)."""
        return tuple(len(vector) for vector in self.weights)


def tile_starts(size: int, patch: int, step_size: float) -> tuple[int, ...]:
    """Return the evenly spread lower corners of tiles of length `patch` on an axis of length `size` >= `patch`."""
    count = math.ceil((size - patch) / (patch * step_size)) + 1
    if count == 1:
        return (0,)
    stride = (size - patch) / (count - 1)
    return tuple(round(stride * index) for index in range(count))


@lru_cache(maxsize=64)
def gaussian_vector(patch: int) -> np.ndarray:
    """Return the Gaussian of one axis (patch,), float64, 1 in its centre `patch // 2`, sigma = patch / 8.

    The Gaussian of a patch is the outer product of these vectors times `PEAK`: the filtered delta is separable. Cut at
    four sigma it still covers the whole patch, so no weight is zero and nothing has to be replaced.
    """
    from scipy.ndimage import gaussian_filter1d  # a training loads it only when it predicts

    delta = np.zeros(patch)
    delta[patch // 2] = 1.0
    vector = gaussian_filter1d(delta, sigma=patch / 8, mode="constant")
    vector /= vector.max()
    vector.setflags(write=False)
    return vector


def gaussian_weights(patch_size: Sequence[int]) -> np.ndarray:
    """Return the whole Gaussian of a patch (*S), float64, `PEAK` in its centre; tiles use its separable factors."""
    weights = np.asarray(PEAK)
    for patch in patch_size:
        weights = weights[..., None] * gaussian_vector(patch)
    return weights


def axis_tiles(size: int, patch: int, step_size: float) -> list[tuple[slice, np.ndarray]]:
    """Return slice and normalised weights of every tile of one axis.

    Positions form a grid and the Gaussian is separable, so the sum of the weights of all tiles is the product of the
    sums per axis. Dividing by it here, in closed form, needs no normaliser volume and no division at the end.
    """
    vector = gaussian_vector(patch)
    starts = tile_starts(size, patch, step_size)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += vector
    slices = [slice(start, start + patch) for start in starts]
    return [(where, (vector / total[where]).astype(np.float32)) for where in slices]


def make_tiles(shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> list[Tile]:
    """Return the tiles of a padded volume (Z, Y, X); a patch of two axes takes every slice by itself."""
    patch = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    if len(patch_size) == 2:
        slices = [(slice(z, z + 1), np.ones(1, dtype=np.float32)) for z in range(shape[0])]
        axes = [slices, *(axis_tiles(shape[axis], patch[axis], step_size) for axis in (1, 2))]
    else:
        axes = [axis_tiles(size, length, step_size) for size, length in zip(shape, patch, strict=True)]
    return [
        Tile(index=(z[0], y[0], x[0]), weights=(z[1], y[1], x[1]))
        for z, y, x in itertools.product(*axes)
    ]  # fmt: skip


def padding(shape: Sequence[int], patch_size: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) per axis of (Z, Y, X) that brings the volume to at least the patch, evenly split."""
    patch = (0,) * (3 - len(patch_size)) + tuple(patch_size)
    missing = [max(0, length - size) for size, length in zip(shape, patch, strict=True)]
    return [(amount // 2, amount - amount // 2) for amount in missing]


def mirror_combinations(mirror_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every subset of the axes, the empty one first: 2^k combinations."""
    axes = sorted(set(mirror_axes))
    return [subset for count in range(len(axes) + 1) for subset in itertools.combinations(axes, count)]
