"""The scores of one case: overlap, surface distance and volume of every label or region."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from autoseg.evaluation.overlap import Counts, counts_from_histogram, histogram_size, joint_histogram
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
    distances = None
    if surface:
        from autoseg.evaluation.surface_scores import SurfaceScores  # scipy, which overlap does without

        distances = SurfaceScores(prediction, reference, labels, spacing, tolerance_mm)
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
