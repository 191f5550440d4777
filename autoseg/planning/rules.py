"""nnU-Net's rules from the fingerprint to spacing, axes, shapes, normalisation, patch and batch.

Source: Isensee et al. 2021, Nature Methods 18, 203-211; the numbers are those of nnU-Net v2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autoseg.planning.topology import MIN_EDGE, Topology, find_topology
from autoseg.plans import COMPUTED_CHANNEL, Scheme

ANISOTROPY = 3  # an axis whose spacing is more than this factor coarser is treated apart
SCHEMES: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
    COMPUTED_CHANNEL: "none",
}
MASK_BELOW = 3 / 4  # z-score inside the non-zero mask where cropping leaves less than this share of the volume
INITIAL_VOXELS = {2: 2048.0**2, 3: 256.0**3}  # voxels of the patch that the search starts from, before clipping


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the median spacing (mm); a very coarse axis with few slices takes its 10th percentile instead."""
    table = np.asarray(spacings, dtype=np.float64)
    target = np.percentile(table, 50, 0)
    size = np.percentile(np.asarray(shapes, dtype=np.float64), 50, 0)
    axis = int(np.argmax(target))
    others = [other for other in range(len(target)) if other != axis]
    coarse = target[axis] > ANISOTROPY * max(target[others])
    few_slices = size[axis] * ANISOTROPY < min(size[others])
    if coarse and few_slices:
        fine = np.percentile(table[:, axis], 10)
        target[axis] = max(target[others]) + 1e-5 if fine < max(target[others]) else fine
    return target


def transposes(target: Sequence[float]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return (forward, backward) permutations that bring the coarsest axis to the front and back."""
    coarsest = int(np.argmax(target))
    forward = (coarsest, *(axis for axis in range(3) if axis != coarsest))
    backward = tuple(forward.index(axis) for axis in range(3))
    return forward, backward


def resampled_shape(shape: Sequence[float], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the shape after resampling from `spacing` to `target`, rounded half to even."""
    return tuple(round(float(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))


def median_shape(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target: Sequence[float]
) -> np.ndarray:
    """Return the per-axis median of the resampled shapes; it may be a half-integer."""
    pairs = zip(spacings, shapes, strict=True)
    return np.median([resampled_shape(shape, spacing, target) for spacing, shape in pairs], 0)


def normalization(channel_names: Sequence[str], median_relative_size: float) -> tuple[tuple[Scheme, ...], tuple]:
    """Return per channel the scheme, chosen by name, and whether it works inside the non-zero mask only."""
    schemes = tuple(SCHEMES.get(name.casefold(), "zscore") for name in channel_names)
    masked = median_relative_size < MASK_BELOW
    return schemes, tuple(masked and scheme == "zscore" for scheme in schemes)


def initial_patch(spacing: Sequence[float], median: Sequence[float]) -> list[float]:
    """Return the patch that the search starts from: isotropic in mm, of a fixed number of voxels, within the median."""
    inverse = 1 / np.asarray(spacing, dtype=np.float64)
    dims = len(inverse)
    edges = inverse * (INITIAL_VOXELS[dims] / np.prod(inverse)) ** (1 / dims)
    return [min(round(float(edge)), float(limit)) for edge, limit in zip(edges, median, strict=True)]


def shrink(
    topology: Topology, spacing: Sequence[float], median: Sequence[float], *, min_edge: int = MIN_EDGE
) -> Topology | None:
    """Return the next smaller topology: the axis with the largest patch-to-median ratio loses one divisor.

    The divisor is the one that holds *after* the axis was shortened, so that no valid size is skipped. None if the
    axis cannot be shortened further.
    """
    ratios = [edge / limit for edge, limit in zip(topology.patch_size, median, strict=True)]
    axis = int(np.argsort(ratios)[-1])
    shorter = list(topology.patch_size)
    shorter[axis] -= topology.divisor[axis]
    divisor = find_topology(spacing, shorter, min_edge=min_edge).divisor[axis]
    patch = list(topology.patch_size)
    patch[axis] -= divisor
    if patch[axis] < 1:
        return None
    return find_topology(spacing, patch, min_edge=min_edge)


def search_patch(
    spacing: Sequence[float],
    median: Sequence[float],
    too_large: Callable[[Topology], bool],
    *,
    min_edge: int = MIN_EDGE,
    smallest: int = 1,
) -> Topology:
    """Return the first topology, shrinking from the initial patch, that is not `too_large`.

    Where all are, the last one is returned that has at least `smallest` voxels.
    """
    topology = find_topology(spacing, initial_patch(spacing, median), min_edge=min_edge)
    while too_large(topology):
        smaller = shrink(topology, spacing, median, min_edge=min_edge)
        if smaller is None or math.prod(smaller.patch_size) < smallest:
            break
        topology = smaller
    return topology


def covered_batch(share: float, dataset_voxels: float, patch_size: Sequence[int]) -> int:
    """Return the batch size whose voxels are `share` of all voxels of the data set."""
    return round(dataset_voxels * share / np.prod(patch_size, dtype=np.float64))


def coarser(spacing: np.ndarray, factor: float = 1.03) -> np.ndarray:
    """Return the next spacing of the low-resolution search: finer axes first, until all are within a factor of 2."""
    finer = spacing.max() / spacing > 2
    return np.where(finer, spacing * factor, spacing) if finer.any() else spacing * factor


def in_words(values: Sequence[Any]) -> str:
    """Return sizes as `128 x 128 x 64`, spacings with up to three digits behind the point."""
    return " x ".join(f"{float(value):.3f}".rstrip("0").rstrip(".") for value in values)
