"""Arrays in a fixed orientation of the body, whatever the order and direction in which the file stores its axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from autoseg.raw.geometry import Geometry


@dataclass(frozen=True)
class Orientation:
    """How the axes of an image go to "RAS": x to the right, y to the front, z up; arrays are (..., Z, Y, X).

    Axes are only exchanged and flipped, each to the direction it is closest to.
    """

    order: tuple[int, int, int]  # axis of the stored (Z, Y, X) that becomes Z, Y, X
    flipped: tuple[bool, bool, bool]  # of the resulting axes

    @classmethod
    def to_ras(cls, geometry: Geometry) -> Orientation:
        """Return the way from the stored axes of an image to RAS; a single 2D image stays as it is."""
        if geometry.dims == 2:
            return cls((0, 1, 2), (False, False, False))
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine  # nibabel's world: x to the right, y to the front
        change = ornt_transform(io_orientation(affine), axcodes2ornt(("R", "A", "S")))
        order, flipped = [0, 0, 0], [False, False, False]
        for axis, (new, direction) in enumerate(change):  # stored axis x, y, z -> axis of RAS
            order[2 - int(new)] = 2 - axis
            flipped[2 - int(new)] = direction < 0
        return cls(tuple(order), tuple(flipped))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a stored array (..., Z, Y, X) in RAS; a view."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return np.flip(turned, [lead + axis for axis in range(3) if self.flipped[axis]])

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return an array (..., Z, Y, X) in RAS with its axes as stored; a view."""
        lead = array.ndim - 3
        straight = np.flip(array, [lead + axis for axis in range(3) if self.flipped[axis]])
        back = np.argsort(self.order)
        return straight.transpose(*range(lead), *(lead + int(axis) for axis in back))

    def spacing(self, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the spacing (z, y, x) of the turned array."""
        return tuple(spacing[axis] for axis in self.order)
