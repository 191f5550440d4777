"""Cut boxes out of stored cases into prepared arrays, padded outside the image, mirrored on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Reader = Callable[[tuple[slice, slice, slice]], np.ndarray]


@dataclass(frozen=True)
class Box:
    """A box of a volume (Z, Y, X); voxels outside the limits or the volume are not read."""

    corner: tuple[int, int, int]
    size: tuple[int, int, int]
    limits: tuple[tuple[int, int], ...] = ()  # (first, one past the last) per axis that may be read; (): no limit

    def inside(self, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part that is read as slices of the volume, and the same part as slices of the box."""
        source, target = [], []
        limits = self.limits or [(0, size) for size in shape]
        for corner, size, length, (first, end) in zip(self.corner, self.size, shape, limits, strict=True):
            low, high = max(corner, first, 0), min(corner + size, end, length)
            high = max(low, high)
            source.append(slice(low, high))
            target.append(slice(low - corner, high - corner))
        return tuple(source), tuple(target)


def copy_box(
    read: Reader, box: Box, shape: Sequence[int], target: np.ndarray, *, outside: int, flips: Sequence[bool] = ()
) -> None:
    """Copy a box of a volume of `shape` into `target` (..., *box.size), mirrored along the axes in `flips`.

    Voxels that are not read become `outside`.
    """
    if any(flips):
        target = target[(..., *(slice(None, None, -1) if flip else slice(None) for flip in flips))]
    source, part = box.inside(shape)
    complete = all(p.stop - p.start == size for p, size in zip(part, box.size, strict=True))
    if not complete:
        target[...] = outside
    if all(s.stop > s.start for s in source):
        target[(..., *part)] = read(source)


def copy_case(
    stored: Any,
    box: Box,
    image: np.ndarray,
    segmentation: np.ndarray,
    previous: np.ndarray | None,
    *,
    previous_stage: str | None,
    flips: Sequence[bool] = (),
) -> None:
    """Copy image (0 outside), segmentation (-1 outside) and, for a cascade, the previous stage's label map."""
    copy_box(stored.image, box, stored.shape, image, outside=0, flips=flips)
    copy_box(stored.label, box, stored.shape, segmentation, outside=-1, flips=flips)
    if previous is not None:
        copy_box(
            lambda part: stored.previous_stage(part, name=previous_stage),
            box,
            stored.shape,
            previous,
            outside=-1,
            flips=flips,
        )
