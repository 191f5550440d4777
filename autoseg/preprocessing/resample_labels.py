"""Resampling of label maps: per label linear interpolation and a threshold, in time independent of the label count.

The rule: the mask of every label is interpolated linearly, and a voxel takes the label whose weight is at least one
half; of two such labels the larger one; without such a label 0. A voxel whose neighbours all carry one label takes
that label, so only voxels at borders between labels need weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from autoseg.preprocessing.geometry import separate_axis
from autoseg.preprocessing.resample import linear_neighbours, nearest_indices

VOXELS_PER_SLAB = 4_000_000  # bounds the working memory
HALF = 0.5 - 1e-6  # weights that are one half on paper count as such in float32
NONE = np.iinfo(np.int16).min

Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower, upper input index, weight of the upper one


def resample_labels(
    label: np.ndarray,
    new_shape: Sequence[int],
    *,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> np.ndarray:
    """Resample a label map (Z, Y, X) to `new_shape` and return it as int16; -1 is a label like the others.

    A single coarse axis (see `separate_axis`) takes the nearest slice.
    """
    label = label.astype(np.int16, copy=False)
    if label.shape == tuple(new_shape):
        return label.copy()
    apart = separate_axis(current_spacing, new_spacing)
    axes = [_neighbours(*sizes, apart == axis) for axis, sizes in enumerate(zip(label.shape, new_shape, strict=True))]
    resampled = np.empty(tuple(new_shape), dtype=np.int16)
    depth = max(1, VOXELS_PER_SLAB // int(np.prod(new_shape[1:])))
    for start in range(0, new_shape[0], depth):
        rows = slice(start, start + depth)
        slab = [tuple(part[rows] for part in axes[0]), *axes[1:]]
        resampled[rows] = _slab(label, slab)
    return resampled


def _neighbours(n_in: int, n_out: int, nearest: bool) -> Neighbours:
    if nearest or n_in == n_out:
        index = nearest_indices(n_in, n_out)
        return index, index, np.zeros(n_out)
    return linear_neighbours(n_in, n_out)


def _slab(label: np.ndarray, axes: Sequence[Neighbours]) -> np.ndarray:
    smallest = largest = label
    for axis, (low, high, _) in enumerate(axes):
        above = largest.take(high, axis=axis)
        largest = largest.take(low, axis=axis)
        np.maximum(largest, above, out=largest)
        above = smallest.take(high, axis=axis)
        smallest = smallest.take(low, axis=axis)
        np.minimum(smallest, above, out=smallest)
    border = np.nonzero(smallest != largest)
    smallest[border] = _vote(label, axes, border)
    return smallest


def _vote(label: np.ndarray, axes: Sequence[Neighbours], voxels: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the winning label of every voxel from the weights of its up to eight neighbours."""
    sides = [(0, 1) if weight.any() else (0,) for _, _, weight in axes]
    labels, weights = [], []
    for corner in product(*sides):
        index, share = [], np.ones(1, dtype=np.float32)
        for side, (low, high, weight), voxel in zip(corner, axes, voxels, strict=True):
            index.append((high if side else low)[voxel])
            share = share * (weight if side else 1 - weight).astype(np.float32)[voxel]
        labels.append(label[tuple(index)])
        weights.append(share)
    winner = np.full(len(voxels[0]), NONE, dtype=np.int16)
    for own in labels:
        score = np.zeros(len(own), dtype=np.float32)
        for other, share in zip(labels, weights, strict=True):
            score += share * (other == own)
        np.maximum(winner, np.where(score >= HALF, own, NONE), out=winner)
    winner[winner == NONE] = 0
    return winner
