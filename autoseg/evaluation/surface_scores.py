"""HD95 and NSD of every label or region of one case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from autoseg.evaluation.overlap import Counts
from autoseg.evaluation.surface import Box, surface_distances
from autoseg.labels import Labels


class SurfaceScores:
    """Surface scores of one case; the box of every value is found once, regions join boxes."""

    def __init__(
        self, prediction: np.ndarray, reference: np.ndarray, labels: Labels, spacing: Sequence[float], tolerance: float
    ):
        if labels.ignore:
            known = reference != labels.ignore_index
            prediction, reference = prediction * known, reference * known
        flat = prediction.shape[0] == 1
        self._prediction, self._reference = (a[0] if flat else a for a in (prediction, reference))
        self._spacing = tuple(spacing[1:] if flat else spacing)
        self._tolerance = tolerance
        count = len(labels.foreground_values)
        self._boxes = [
            ndimage.find_objects(np.maximum(array, 0), max_label=count) for array in (self._prediction, self._reference)
        ]

    def of(self, members: Sequence[int], counts: Counts) -> tuple[float | None, float | None]:
        """Return HD95 and NSD of the union of some internal values."""
        if not counts.prediction and not counts.reference:
            return None, None
        if not counts.prediction or not counts.reference:
            return None, 0.0
        box = _join([boxes[value - 1] for boxes in self._boxes for value in members])
        masks = [_is_member(array[box], members) for array in (self._prediction, self._reference)]
        found = surface_distances(*masks, self._spacing)
        return found.hd95, found.nsd(self._tolerance)


def _is_member(array: np.ndarray, members: Sequence[int]) -> np.ndarray:
    return array == members[0] if len(members) == 1 else np.isin(array, members)


def _join(boxes: Sequence[Box | None]) -> Box:
    found = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))
