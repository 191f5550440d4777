"""Applies the post-processing steps that selection found useful.

Source: keeping the largest component, Isensee et al. 2021 (nnU-Net).
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np

from autoseg.model_folder import PostprocessingStep


def postprocess(label: np.ndarray, steps: Sequence[PostprocessingStep]) -> np.ndarray:
    """Return the internal label map (Z, Y, X) after all steps; removed voxels become background (0)."""
    for step in steps:
        label = keep_largest(label, step.values)
    return label


def keep_largest(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return the label map (Z, Y, X) with only the largest component of the union of `values`.

    Components are connected through faces, edges and corners (26 neighbours; in a single slice these are 8). Components
    of the same largest size are all kept, so the result does not depend on the order of the voxels.
    """
    mask = np.isin(label, values)
    components, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    if count < 2:
        return label
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0  # what is outside of the mask
    kept = label.copy()
    kept[mask & (sizes != sizes.max())[components]] = 0
    return kept
