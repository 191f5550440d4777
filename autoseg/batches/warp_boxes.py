"""How much of an image a rotated or scaled patch looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WarpBoxes:
    """Boxes of one common size for several warped samples, in voxels of their initial patches."""

    size: tuple[int, ...]  # one entry per warped axis
    corners: tuple[tuple[int, ...], ...]  # one per sample
    centres: np.ndarray  # (n, d) centre of the patch in voxels of its box


def warp_boxes(matrices: np.ndarray, *, patch: Sequence[int], initial: Sequence[int]) -> WarpBoxes:
    """Return the boxes that the patches look at under `matrices` (n, d, d), cut to the initial patch.

    Around it stays one layer below and two above, which are outside values where the initial patch ends.
    """
    reach = np.abs(matrices) @ ((np.asarray(patch) - 1) / 2)  # (n, d)
    middle = (np.asarray(initial) - 1) / 2
    low = np.maximum(np.floor(middle - reach), 0).astype(int) - 1
    high = np.minimum(np.ceil(middle + reach), np.asarray(initial) - 1).astype(int) + 2
    size = (high - low + 1).max(axis=0)
    return WarpBoxes(
        size=tuple(size.tolist()),
        corners=tuple(tuple(corner) for corner in low.tolist()),
        centres=middle - low,
    )
