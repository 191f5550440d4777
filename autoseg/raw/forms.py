"""Where a NIfTI header says that its image lies: the sform and the qform, and which of them is used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autoseg.raw.geometry import IDENTITY, TOLERANCE, Geometry, corners_of

TO_ITK = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's x and y point the other way
SCANNER = 1  # the form code "scanner anatomy"
MILLIMETRES = {1: 1000.0, 3: 0.001}  # of one unit of length, by its code; mm and codes that nobody knows are 1
LOST = 4e-7  # what three squares in single precision leave open of the fourth number of a quaternion, squared


@dataclass(frozen=True)
class SecondPlace:
    """The form that is not used although it counts, too, and puts the image elsewhere."""

    used: str  # "sform (code 1)"
    other: str
    distance: float  # mm between the corners that are farthest apart; inf if the other one gives no place at all


def millimetres(header) -> float:
    """Return how many mm one unit of length of the header has."""
    return MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def used_affine(header) -> np.ndarray:
    """Return the 4x4 matrix from voxel index to mm, as DICOM and ITK have it, of the form that ITK chooses."""
    return _affine(header, _used(header))


def second_place(header, geometry: Geometry) -> SecondPlace | None:
    """Return where the other form puts the image whose grid is `geometry`, if it has a code above 0 and differs.

    The tolerance is that of `compare`, and what rounding leaves open of the qform: up to 0.07 degrees close to half a
    turn, as in every image whose axes point to the left and to the back.
    """
    used = _used(header)
    other = "qform" if used == "sform" else "sform"
    if min(_codes(header).values()) <= 0:
        return None
    with np.errstate(all="ignore"):  # of a form that is no place, too
        shifts = corners_of(_affine(header, other), geometry.size) - geometry.corners
        distance = float(np.linalg.norm(shifts, axis=1).max())
    reach = float(np.linalg.norm(geometry.corners - geometry.corners[0], axis=1).max())
    if distance <= TOLERANCE * min(geometry.spacing) + _blur(header) * reach:
        return None
    used, other = (f"{name} (code {_codes(header)[name]})" for name in (used, other))
    return SecondPlace(used, other, distance if math.isfinite(distance) else math.inf)


def _codes(header) -> dict[str, int]:
    return {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}


def _used(header) -> str | None:
    """Choose as ITK does: the sform, unless only the qform speaks of the scanner; None if neither has a code."""
    sform, qform = _codes(header).values()
    if sform > 0 and not (qform == SCANNER != sform):
        return "sform"
    return "qform" if qform > 0 else None


def _affine(header, form: str | None) -> np.ndarray:
    steps = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    if form == "sform":
        affine = np.asarray(header.get_sform(), dtype=float)
    elif form == "qform":
        affine = _rotated(header, steps)
    else:
        affine = TO_ITK @ np.diag([*steps, 1.0]) @ np.diag([*np.reshape(IDENTITY, (3, 3)).diagonal(), 1.0])
    with np.errstate(all="ignore"):  # whoever needs numbers tells what is none
        affine = TO_ITK @ affine
        affine[:3] *= millimetres(header)
    return affine


def _quaternion(header) -> tuple[float, float, float]:
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    return b, c, d


def _blur(header) -> float:
    """Return the angle (radians) that the three stored numbers of the quaternion leave open."""
    squared = sum(value * value for value in _quaternion(header))
    fourth = max(0.0, 1 - squared)
    return 2 * (math.sqrt(fourth + LOST) - math.sqrt(fourth))


def _rotated(header, steps: np.ndarray) -> np.ndarray:
    """Return the qform; a quaternion that is too long is shortened and an odd qfac read, as ITK does."""
    b, c, d = _quaternion(header)
    squared = b * b + c * c + d * d
    if 1 - squared < 1e-7:
        a, shrink = 0.0, 1 / math.sqrt(squared)
        b, c, d = b * shrink, c * shrink, d * shrink
    else:
        a = math.sqrt(1 - squared)
    flip = -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    rotation = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = rotation * (steps * (1, 1, flip))
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine
