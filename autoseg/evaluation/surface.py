"""Surface distances in mm: HD95 and normalised surface Dice (NSD), on cropped boxes with exact distance transforms.

Definitions
    surface    voxels of a mask with at least one face neighbour (6 in 3D, 4 in 2D) outside of the mask; what lies
               outside of the image is outside of the mask
    distance   from the centre of a surface voxel to the centre of the nearest surface voxel of the other mask
    HD95       max over both directions of the 95th percentile (linear interpolation) of the directed distances
    NSD        (surface voxels of both masks within the tolerance) / (all surface voxels of both masks)

Voxel counts stand for surface areas, as in most challenge tools; marching-cube areas would change NSD in the third
digit. Source: Nikolov et al. 2021, arXiv:1809.04430 (NSD); Taha and Hanbury 2015 (HD percentile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import edt
import numpy as np

Box = tuple[slice, ...]
_ROUNDING = 1e-6  # distances are float32: a distance equal to the tolerance must count as within it


@dataclass(frozen=True)
class SurfaceDistances:
    """Directed distances in mm, one per surface voxel: prediction to reference and back."""

    to_reference: np.ndarray
    to_prediction: np.ndarray

    @property
    def hd95(self) -> float:
        """Return the larger of the two directed 95th percentiles, in mm."""
        return float(max(np.percentile(self.to_reference, 95), np.percentile(self.to_prediction, 95)))

    def nsd(self, tolerance: float) -> float:
        """Return the share of all surface voxels of both masks within `tolerance` mm of the other surface."""
        limit = tolerance * (1 + _ROUNDING)
        within = (self.to_reference <= limit).sum() + (self.to_prediction <= limit).sum()
        return float(within / (self.to_reference.size + self.to_prediction.size))


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Return the surface distances of two non-empty boolean masks (2 or 3 axes), spacing in mm per axis."""
    box = union_box(prediction, reference)
    surfaces = [surface(mask[box]) for mask in (prediction, reference)]
    distance_to = [edt.edt(~border, anisotropy=tuple(map(float, spacing)), black_border=False) for border in surfaces]
    return SurfaceDistances(
        to_reference=distance_to[1][surfaces[0]].astype(np.float64),
        to_prediction=distance_to[0][surfaces[1]].astype(np.float64),
    )


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the surface voxels of a boolean mask; see the module for the definition."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        moved, kept = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        moved[1:] &= kept[:-1]
        moved[:-1] &= kept[1:]
        moved[0] = False
        moved[-1] = False
    return mask & ~inside


def union_box(*masks: np.ndarray) -> Box:
    """Return the smallest box that holds every True voxel of all masks; at least one must be True."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(a for a in range(masks[0].ndim) if a != axis)
        used = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
