"""Where the voxels of an image lie in space, and how two grids compare.

Arrays are (Z, Y, X); points are in mm, x to the left, y to the back, z up, as in DICOM and SimpleITK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.errors import UserError

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
FLAT_SPACING = 999.0  # slice spacing of a 2D image, in units of its larger pixel spacing: nnU-Net's convention
FLATTEST = 0.01  # volume spanned by the axes of a grid; a gantry tilted by 30 degrees gives 0.87
FINEST, COARSEST = 1e-6, 1e4  # mm; plans reach to 1e5, as low-resolution stages may be ten times as coarse as the data
TOLERANCE = 0.05  # grids agree if no corner is off by more than this share of the smallest voxel edge
REGRID = (
    "if the label map's own geometry is right, run `autoseg check` with --fix-geometry, which resamples it onto the "
    "image's grid; otherwise write it with the geometry of the image"
)


@dataclass(frozen=True)
class Geometry:
    """The grid of one image: enough to write a label map on exactly this grid."""

    spacing: tuple[float, float, float]  # mm, (z, y, x)
    size: tuple[int, int, int]  # voxels, (z, y, x)
    origin: tuple[float, float, float]  # mm, (x, y, z): the centre of the first voxel
    direction: tuple[float, ...]  # 9 numbers, row by row; column i is the direction of array axis (x, y, z)[i]
    dims: Literal[2, 3]  # 2: the file holds a single image, not a volume
    source: Path
    physical: bool = True  # False: the format stores no spacing (PNG, JPG): only sizes can be compared

    @property
    def affine(self) -> np.ndarray:
        """The 4x4 matrix from voxel index (x, y, z) to mm."""
        spacing = self.spacing[::-1] if self.dims == 3 else (self.spacing[2], self.spacing[1], 1.0)
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * spacing
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def corners(self) -> np.ndarray:
        """The centres of the eight corner voxels in mm, (8, 3)."""
        return corners_of(self.affine, self.size)

    def describe(self) -> str:
        """Return size, spacing and origin in one line, axes z, y, x."""
        place = tuple(round(value, 3) for value in self.origin[::-1])
        return f"size {self.size}, spacing {tuple(round(s, 4) for s in self.spacing)} mm, origin {place} mm"


def corners_of(affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the centres of the eight corner voxels of a volume of `size` (z, y, x) in mm, (8, 3)."""
    corners = np.array(list(product(*((0, edge - 1) for edge in size[::-1]))), dtype=float)
    return corners @ affine[:3, :3].T + affine[:3, 3]


def refuse_odd_spacing(spacing: Sequence[float], path: Path) -> None:
    """Raise UserError if a spacing (mm, of the axes that the file has) is none, or none that plans can hold."""
    values = [float(value) for value in spacing]
    if not all(0 < value < math.inf for value in values):
        raise UserError(
            f"the header gives spacing {values} mm, which is no grid",
            where=path,
            mend="write the file again with a valid affine",
        )
    if not FINEST <= min(values) <= max(values) <= COARSEST:
        raise UserError(
            f"field spacing is {' x '.join(f'{value:g}' for value in values)} mm, beyond {FINEST:g} to {COARSEST:g} mm",
            where=path,
            mend="write the file again with its spacing in mm; if that is right, give all images of the data set in "
            "another unit, as only ratios count",
        )


def refuse_flat_axes(direction: np.ndarray, path: Path) -> None:
    """Raise UserError if the axes of a grid, the columns (3, 3) of length 1, nearly lie in one plane."""
    volume = abs(float(np.linalg.det(direction)))
    if not volume > FLATTEST:
        raise UserError(
            f"the axes that the header gives are nearly parallel: they span {volume:.2g} of a cube",
            where=path,
            mend="write the file again with a valid affine",
        )


@dataclass(frozen=True)
class Image:
    """One case as read: data (C, Z, Y, X) float32, and its grid."""

    data: np.ndarray
    geometry: Geometry


@dataclass(frozen=True)
class Comparison:
    """How a label's grid relates to its image's.

    "equal": the same voxels. "resolvable": another grid, or a part of it, in the same space, so that the label can be
    resampled. "irreconcilable": no common place, or no space to speak of.
    """

    verdict: Literal["equal", "resolvable", "irreconcilable"]
    distance: float = 0.0  # mm between the corners that are farthest apart, where the sizes agree


def compare(image: Geometry, other: Geometry) -> Comparison:
    """Compare two grids; tolerance: `TOLERANCE` of the smallest voxel edge of the image."""
    if not (image.physical and other.physical):
        return Comparison("equal" if image.size == other.size else "irreconcilable")
    if image.size == other.size:
        distance = float(np.linalg.norm(image.corners - other.corners, axis=1).max())
        if distance <= TOLERANCE * min(image.spacing):
            return Comparison("equal", distance)
    else:
        distance = float("nan")
    return Comparison("resolvable" if _overlap(image, other) else "irreconcilable", distance)


def label_grid_error(image: Geometry, label: Geometry, path: Path) -> UserError | None:
    """Return what is wrong with the grid of the label map `path`, and the mend; None if it is that of its image."""
    comparison = compare(image, label)
    if image.size == label.size and comparison.verdict == "equal":
        return None
    if image.size != label.size:
        what = f"the label map has shape {label.size}, the image {image.size} (z, y, x)"
    else:
        what = (
            f"the label map has another geometry (affine) than the image, corners are up to {comparison.distance:.2f} "
            f"mm apart: {label.describe()}; the image has {image.describe()}"
        )
    resolvable = comparison.verdict == "resolvable"
    if not resolvable and image.physical and label.physical:
        what += "; they have no place in common"
    return UserError(what, where=path, mend=REGRID if resolvable else "give the label map that belongs to this image")


def _overlap(image: Geometry, other: Geometry) -> bool:
    """Tell whether the box of `other`, seen in the image's voxel axes, touches the image."""
    to_index = np.linalg.inv(image.affine)
    corners = other.corners @ to_index[:3, :3].T + to_index[:3, 3]
    size = np.array(image.size[::-1])
    return bool((corners.max(0) >= -0.5).all() and (corners.min(0) <= size - 0.5).all())


def resample_label(label: np.ndarray, geometry: Geometry, target: Geometry) -> np.ndarray:
    """Resample a label map (Z, Y, X) by nearest neighbour onto the grid `target`; 0 where there was none."""
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(geometry.affine) @ target.affine  # target index (x, y, z) -> label index
    flip = np.eye(4)[[2, 1, 0, 3]]
    matrix = flip @ matrix @ flip
    # "constant" would drop the outer half of the outermost voxels, and a whole face by rounding errors.
    return affine_transform(label, matrix[:3, :3], matrix[:3, 3], target.size, order=0, mode="grid-constant", cval=0)
