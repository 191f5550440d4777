"""Cropping a case to its non-zero region, and marking the voxels outside of it in the label map."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from autoseg.labels import OUTSIDE

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass
class Cropped:
    """A case cut to its non-zero region, axes as in the file.

    `image` is (C, Z, Y, X) in any real type; `label` int16 (Z, Y, X) with internal values, -1 where background lies
    outside of the non-zero region. With `labelled` False it only tells inside (0) from outside (-1); None if not asked.
    """

    image: np.ndarray
    label: np.ndarray | None
    labelled: bool
    spacing: tuple[float, float, float]
    shape_before_crop: tuple[int, int, int]
    box: Box

    def transposed(self, axes: tuple[int, int, int]) -> Cropped:
        """Return the case with its spatial axes in another order (views, no copies)."""
        return Cropped(
            image=self.image.transpose(0, *(axis + 1 for axis in axes)),
            label=None if self.label is None else self.label.transpose(axes),
            labelled=self.labelled,
            spacing=tuple(self.spacing[axis] for axis in axes),
            shape_before_crop=tuple(self.shape_before_crop[axis] for axis in axes),
            box=tuple(self.box[axis] for axis in axes),
        )


def crop(
    image: np.ndarray, label: np.ndarray | None, spacing: tuple[float, float, float], *, mark_outside: bool = True
) -> Cropped:
    """Crop an image (C, Z, Y, X) and its label map (internal values) to the non-zero region of any channel.

    An image of zeros only is kept whole, all of it inside. The arrays of the result are views where possible. Without a
    label map and `mark_outside` the result has none either, which saves filling holes.
    """
    mask = np.logical_or.reduce([channel != 0 for channel in image])
    if not mask.any():
        mask[:] = True
    box = bounding_box(mask)
    inside = tuple(slice(low, high) for low, high in box)
    marked = None
    if label is not None or mark_outside:
        marked = _marked(mask[inside], None if label is None else label[inside])
    return Cropped(
        image=image[(slice(None), *inside)],
        label=marked,
        labelled=label is not None,
        spacing=tuple(map(float, spacing)),
        shape_before_crop=tuple(image.shape[1:]),
        box=box,
    )


def bounding_box(mask: np.ndarray) -> Box:
    """Return (first, one past the last) per axis of the true voxels of a mask that has some."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append((int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return a boolean mask (Z, Y, X) with the background filled that is not connected (by faces) to the border.

    A mask of a single slice is all border, so nothing is filled in it.
    """
    if mask.all() or min(mask.shape) < 3:
        return mask
    parts = cc3d.connected_components(~mask, connectivity=6)
    outside = np.zeros(int(parts.max()) + 1, dtype=bool)
    for axis in range(3):
        for face in (0, -1):
            outside[np.unique(parts.take(face, axis=axis))] = True
    outside[0] = False  # part 0 is the mask itself
    return ~outside[parts]


def _marked(mask: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    outside = ~fill_holes(mask)
    if label is None:
        return np.where(outside, OUTSIDE, 0).astype(np.int16)
    marked = label.astype(np.int16, copy=True)
    marked[outside & (marked == 0)] = OUTSIDE
    return marked
