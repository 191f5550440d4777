"""Logits on the preprocessed grid, or some rows of them -> any slab of the original grid, never as a whole.

Order 1 along every axis, order 0 along the axis that is resampled separately. Source: resampling of predictions and
of anisotropic images, Isensee et al. 2021 (nnU-Net v2 rules). Everything is linear per axis, so a slab needs only the
few input slices that reach into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.plans import Configuration, Plans
from autoseg.preprocessing import CaseProperties
from autoseg.preprocessing.resample import separate_axis, spline_matrix

SLAB_VALUES = 2**22  # float32 values of one slab: what the peak of memory is made of
TIMES_ON_GPU = 8  # as many more, since a GPU waits for small slabs to be started


@dataclass(frozen=True)
class Frame:
    """The original grid of a case in the axes of the image (Z, Y, X): its shape and the box that was kept of it."""

    shape: tuple[int, ...]
    box: tuple[slice, ...]

    @property
    def cropped(self) -> tuple[int, ...]:
        """Return the shape of the box."""
        return tuple(part.stop - part.start for part in self.box)

    def slabs(self, rows: slice | None = None, *, values: float = 1) -> Iterator[slice]:
        """Yield slabs of some rows (None: all) of the box's first axis; size times `values` per voxel is bounded.

        A value on a GPU counts as a fraction of one, see `Resampled.slab_share`.
        """
        depth, height, width = self.cropped
        rows = slice(0, depth) if rows is None else rows
        step = max(1, int(SLAB_VALUES // max(1.0, values * height * width)))
        return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))

    def rows(self, slab: slice) -> tuple[slice, ...]:
        """Return where a slab of the box lies in the original grid."""
        first = self.box[0].start
        return (slice(first + slab.start, first + slab.stop), *self.box[1:])


def frame_of(properties: CaseProperties, plans: Plans) -> Frame:
    """Return the original grid of a case, in the axes of the image."""
    back = plans.transpose_backward
    box = [slice(int(low), int(high)) for low, high in properties.crop_box]
    return Frame(
        shape=tuple(int(properties.shape_before_crop[axis]) for axis in back), box=tuple(box[axis] for axis in back)
    )


class Resampled:
    """Values (K, *S) of the preprocessed grid, seen on the original grid within the crop, in the image's axes.

    With `first` the values are a part: the rows from there on along the axis that is the image's first.
    """

    def __init__(
        self,
        values: Tensor,
        properties: CaseProperties,
        plans: Plans,
        configuration: Configuration,
        *,
        first: int | None = None,
    ):
        back = plans.transpose_backward
        self.values = values.permute(0, *(axis + 1 for axis in back))  # a view
        self.frame = frame_of(properties, plans)
        self._first = first or 0
        self._last_band: tuple[tuple[int, int], slice, Tensor] | None = None
        self._depth = self.values.shape[1] if first is None else int(properties.shape_resampled[back[0]])
        missing = tuple(properties.spacing)[: 3 - len(configuration.spacing)]
        separate = separate_axis((*missing, *configuration.spacing), tuple(properties.spacing))
        changed = (self._depth, *self.values.shape[2:]) != self.frame.cropped
        self.orders = [0 if changed and axis == separate else 1 for axis in back]

    @property
    def slab_share(self) -> float:
        """Return what a value counts in the size of a slab: on a GPU slabs are larger."""
        return 1 / TIMES_ON_GPU if self.values.device.type == "cuda" else 1

    def rows(self, after: int) -> slice:
        """Return the rows of the original grid, from `after` on, that these values suffice for."""
        size_out, last = self.frame.cropped[0], self._first + self.values.shape[1]
        if self._depth == size_out:
            return slice(after, last)
        needed = self._depth - np.argmax(self._matrix[:, ::-1] != 0, axis=1)  # values up to here, for each row
        return slice(after, max(after, int(np.searchsorted(needed, last, side="right"))))

    def slab(self, outputs: slice, rows: slice) -> Tensor:
        """Return some outputs of a slab, (k, z, Y, X) float32, on the device of the values; may be a view of them."""
        values = self._first_axis(outputs, rows)
        for axis in (1, 2):
            values = self._nearest(values, axis) if self.orders[axis] == 0 else values
        size = self.frame.cropped[1:]
        if tuple(values.shape[2:]) == size:
            return values
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)

    @property
    def _matrix(self) -> np.ndarray:
        return spline_matrix(self._depth, self.frame.cropped[0], self.orders[0])

    def _first_axis(self, outputs: slice, rows: slice) -> Tensor:
        if self._depth == self.frame.cropped[0]:
            return self.values[outputs, rows.start - self._first : rows.stop - self._first].float().contiguous()
        reach, weights = self._band(rows)
        return torch.einsum("zi,kiyx->kzyx", weights, self.values[outputs, reach].float())

    def _band(self, rows: slice) -> tuple[slice, Tensor]:
        """Return which of these values reach into some rows, and with what weights; kept for the other outputs."""
        if self._last_band is None or self._last_band[0] != (rows.start, rows.stop):
            matrix = self._matrix[rows]
            used = np.flatnonzero(matrix.any(axis=0))
            low, high = int(used[0]), int(used[-1]) + 1
            weights = torch.tensor(matrix[:, low:high], device=self.values.device)
            self._last_band = (rows.start, rows.stop), slice(low - self._first, high - self._first), weights
        return self._last_band[1:]

    def _nearest(self, values: Tensor, axis: int) -> Tensor:
        size_in, size_out = values.shape[axis + 1], self.frame.cropped[axis]
        if size_in == size_out:
            return values
        nearest = spline_matrix(size_in, size_out, 0).argmax(1)
        return values.index_select(axis + 1, torch.from_numpy(nearest).to(values.device))
