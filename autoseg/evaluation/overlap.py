"""Overlap counts of every label and region from one joint histogram of prediction and reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoseg.labels import Labels

_SLAB = 1 << 22  # voxels histogrammed at once: bounds the memory of the joint index


@dataclass(frozen=True)
class Counts:
    """Voxel counts of one name: true positives, false positives, false negatives."""

    tp: int
    fp: int
    fn: int

    @property
    def prediction(self) -> int:
        """Return the number of predicted voxels."""
        return self.tp + self.fp

    @property
    def reference(self) -> int:
        """Return the number of reference voxels."""
        return self.tp + self.fn

    @property
    def dice(self) -> float | None:
        """Return 2 tp / (2 tp + fp + fn), or None if neither mask has a voxel."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else None

    @property
    def iou(self) -> float | None:
        """Return tp / (tp + fp + fn), or None if neither mask has a voxel."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else None


def joint_histogram(prediction: np.ndarray, reference: np.ndarray, *, size: int) -> np.ndarray:
    """Return counts (size, size) of (predicted value, reference value); values below 0 count as background.

    prediction, reference: integer arrays of one shape with values below `size`.
    """
    predicted, referenced = prediction.reshape(-1), reference.reshape(-1)
    counts = np.zeros(size * size, dtype=np.int64)
    for start in range(0, predicted.size, _SLAB):
        part = slice(start, start + _SLAB)
        joint = np.maximum(predicted[part], 0).astype(np.intp) * size + np.maximum(referenced[part], 0)
        counts += np.bincount(joint, minlength=size * size)
    return counts.reshape(size, size)


def membership(labels: Labels) -> np.ndarray:
    """Return a 0/1 matrix (names, internal values 0..K): which values belong to which name."""
    matrix = np.zeros((len(labels.names), len(labels.foreground_values) + 1), dtype=np.int64)
    for row, members in enumerate(labels.members):
        matrix[row, list(members)] = 1
    return matrix


def counts_from_histogram(histogram: np.ndarray, labels: Labels) -> dict[str, Counts]:
    """Return the counts of every name; voxels whose reference is "ignore" are left out.

    histogram: (>= K+1, >= K+1) as of `joint_histogram`. A predicted "ignore" counts as background.
    """
    belongs = membership(labels)
    known = belongs.shape[1]
    both = belongs @ histogram[:known, :known]  # (names, reference values)
    tp = (both * belongs).sum(axis=1)
    prediction = both.sum(axis=1)
    reference = belongs @ histogram[:, :known].sum(axis=0)
    return {
        name: Counts(int(t), int(p - t), int(r - t))
        for name, t, p, r in zip(labels.names, tp, prediction, reference, strict=True)
    }


def histogram_size(labels: Labels) -> int:
    """Return the number of internal values that may occur: background, foreground, and "ignore" if declared."""
    return len(labels.foreground_values) + 1 + bool(labels.ignore)
