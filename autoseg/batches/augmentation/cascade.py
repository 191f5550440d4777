"""Faults for the previous stage's label map, so that the next stage learns not to trust it blindly.

Source: nnU-Net v2 and batchgeneratorsv2 (Apache-2.0). They work on one-hot channels, of which voxels added to one are
removed from the others; that is a label map, and this works on label maps. Balls are thresholds of exact Euclidean
distances instead of convolutions; what lies outside the patch counts neither as label nor as background.
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import edt
import numpy as np

from autoseg.batches.augmentation.draws import Draws

MORPHOLOGY_PROBABILITY, MORPHOLOGY_LABEL = 0.4, 0.5
RADIUS = (1.0, 8.0)  # voxels
REMOVAL_PROBABILITY, REMOVAL_LABEL = 0.2, 0.5
LARGEST_REMOVED = 0.15  # share of the patch; larger components stay


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the voxels at most `radius` away from the mask."""
    return _distance(~mask) <= radius if mask.any() else mask


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the voxels of the mask more than `radius` away from its outside."""
    return ~dilate(~mask, radius)


def open_mask(mask: np.ndarray, radius: float) -> np.ndarray:
    """Erode, then dilate."""
    return dilate(erode(mask, radius), radius)


def close_mask(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate, then erode."""
    return erode(dilate(mask, radius), radius)


OPERATIONS = (dilate, erode, close_mask, open_mask)


def damage(label_map: np.ndarray, labels: Sequence[int], draws: Draws) -> None:
    """Damage the label map (*S) of one sample in place, with the probabilities of nnU-Net."""
    if draws.chance(MORPHOLOGY_PROBABILITY):
        for label in _shuffled(labels, draws):
            if draws.chance(MORPHOLOGY_LABEL):
                _reshape(label_map, label, OPERATIONS[draws.below(len(OPERATIONS))], draws.uniform(*RADIUS))
    if draws.chance(REMOVAL_PROBABILITY):
        for label in _shuffled(labels, draws):
            if draws.chance(REMOVAL_LABEL):
                remove_component(label_map, label, draws)


def remove_component(label_map: np.ndarray, label: int, draws: Draws) -> None:
    """Remove one random component of a label, among those smaller than 15 % of the patch, in place."""
    mask = label_map == label
    if not mask.any():
        return
    components = cc3d.connected_components(mask)
    sizes = np.bincount(components.ravel())
    candidates = [number for number in range(1, len(sizes)) if 0 < sizes[number] < LARGEST_REMOVED * mask.size]
    if candidates:
        label_map[components == candidates[draws.below(len(candidates))]] = 0


def _reshape(label_map: np.ndarray, label: int, operation, radius: float) -> None:
    before = label_map == label
    after = operation(before, radius)
    label_map[before & ~after] = 0
    label_map[after] = label


def _distance(mask: np.ndarray) -> np.ndarray:
    """Return for every voxel of the mask the distance to the nearest voxel outside it, 0 outside."""
    return edt.edt(np.ascontiguousarray(mask), black_border=False, parallel=1)


def _shuffled(labels: Sequence[int], draws: Draws) -> list[int]:
    remaining = list(labels)
    return [remaining.pop(draws.below(len(remaining))) for _ in labels]
