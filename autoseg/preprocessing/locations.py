"""Sampled voxel coordinates of every class, so that training can centre patches on foreground."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoseg.labels import Labels

SEED = 1234
AT_MOST = 10_000  # per class, unless one percent of its voxels is more
SHARE = 0.01
ANNOTATED = -1  # the key of all voxels that carry information, present if the data set has an ignore label


def class_locations(label: np.ndarray, labels: Labels) -> Mapping[int, np.ndarray]:
    """Return for every class present in a label map (internal values) voxel coordinates (N, 3) int32.

    Keys are internal foreground values, or positions of regions; with an ignore label also -1 for all annotated voxels.
    min(10000, n), at least 1 % of the n voxels, are drawn without replacement; equal label maps give equal draws.
    """
    random = np.random.RandomState(SEED)
    flat = label.ravel()
    foreground = np.flatnonzero(flat > 0)
    values = flat[foreground]
    found = {}
    for key, members in _groups(labels):
        voxels = foreground[values == members[0] if len(members) == 1 else np.isin(values, members)]
        if len(voxels):
            found[key] = _draw(voxels, random, label.shape)
    if labels.ignore_index is not None:
        voxels = np.flatnonzero(flat != labels.ignore_index)
        if len(voxels):
            found[ANNOTATED] = _draw(voxels, random, label.shape)
    return found


def _groups(labels: Labels) -> list[tuple[int, tuple[int, ...]]]:
    if labels.regions:
        return list(enumerate(labels.members))
    return [(value + 1, (value + 1,)) for value in range(len(labels.foreground_values))]


def _draw(voxels: np.ndarray, random: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    count = max(min(AT_MOST, len(voxels)), int(np.ceil(SHARE * len(voxels))))
    chosen = voxels[random.choice(len(voxels), count, replace=False)]
    return np.stack(np.unravel_index(chosen, shape), axis=1).astype(np.int32)
