"""The scores of one case: overlap, surface distance and volume of every label or region."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy import ndimage

from autoseg.evaluation.overlap import Counts, counts_from_histogram, histogram_size, joint_histogram
from autoseg.evaluation.surface import Box, surface_distances
from autoseg.labels import Labels

NO_SLICE_SPACING = 999.0  # first spacing of 2D images, by nnU-Net's convention


@dataclass(frozen=True)
class Scores:
    """Scores of one name in one case; None is "undefined", never zero.

    Both masks empty: dice, iou, hd95, nsd None. One mask empty: dice, iou, nsd 0, hd95 None (counted as missing in
    the summary). Not annotated in this case: everything about agreement None. Volumes are None for 2D images.
    """

    dice: float | None = None
    iou: float | None = None
    hd95: float | None = None  # mm; pixels for natural images
    nsd: float | None = None
    volume_prediction_ml: float | None = None
    volume_reference_ml: float | None = None
    tp: int | None = None
    fp: int | None = None
    fn: int | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the scores as plain JSON values."""
        return asdict(self)


METRICS = tuple(field.name for field in fields(Scores))


def evaluate_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    labels: Labels,
    spacing: Sequence[float],
    tolerance_mm: float = 1.0,
    surface: bool = True,
    annotated: Collection[str] | None = None,
) -> dict[str, Scores]:
    """Return the scores of every label or region of one case.

    prediction, reference: internal values (Z, Y, X); spacing in mm in that order. Voxels whose reference is "ignore"
    are excluded from both. A volume of one slice is scored in its plane. `annotated` names what the reference
    shows; the other names are left undefined.
    """
    histogram = joint_histogram(prediction, reference, size=histogram_size(labels))
    counts = counts_from_histogram(histogram, labels)
    flat = prediction.shape[0] == 1
    voxel_ml = None if flat and spacing[0] >= NO_SLICE_SPACING else float(np.prod(spacing)) / 1000
    distances = _SurfaceScores(prediction, reference, labels, spacing, tolerance_mm) if surface else None
    scores = {}
    for name, members in zip(labels.names, labels.members, strict=True):
        if annotated is not None and name not in annotated:
            volume = None if voxel_ml is None else counts[name].prediction * voxel_ml
            scores[name] = Scores(volume_prediction_ml=volume)
            continue
        hd95, nsd = distances.of(members, counts[name]) if distances else (None, None)
        scores[name] = _scores(counts[name], hd95, nsd, voxel_ml)
    return scores


def _scores(counts: Counts, hd95: float | None, nsd: float | None, voxel_ml: float | None) -> Scores:
    return Scores(
        dice=counts.dice,
        iou=counts.iou,
        hd95=hd95,
        nsd=nsd,
        volume_prediction_ml=None if voxel_ml is None else counts.prediction * voxel_ml,
        volume_reference_ml=None if voxel_ml is None else counts.reference * voxel_ml,
        tp=counts.tp,
        fp=counts.fp,
        fn=counts.fn,
    )


class _SurfaceScores:
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
