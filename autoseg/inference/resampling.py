"""Logits on the preprocessed grid -> any slab of the original grid, slab by slab, never as a whole.

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


@dataclass(frozen=True)
class Frame:
    """The original grid of a case in the axes of the image (Z, Y, X): its shape and the box that was kept of it."""

    shape: tuple[int, ...]
    box: tuple[slice, ...]

    @property
    def cropped(self) -> tuple[int, ...]:
        """Return the shape of the box."""
        return tuple(part.stop - part.start for part in self.box)

    def slabs(self, *, values: int = 1) -> Iterator[slice]:
        """Yield slabs along the first axis of the box whose size, times `values` per voxel, stays bounded."""
        depth, height, width = self.cropped
        step = max(1, SLAB_VALUES // max(1, values * height * width))
        return (slice(start, min(start + step, depth)) for start in range(0, depth, step))

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
    """Values (K, *S) of the preprocessed grid, seen on the original grid within the crop, in the image's axes."""

    def __init__(self, values: Tensor, properties: CaseProperties, plans: Plans, configuration: Configuration):
        back = plans.transpose_backward
        self.values = values.permute(0, *(axis + 1 for axis in back))  # a view
        self.frame = frame_of(properties, plans)
        missing = tuple(properties.spacing)[: 3 - len(configuration.spacing)]
        separate = separate_axis((*missing, *configuration.spacing), tuple(properties.spacing))
        changed = tuple(self.values.shape[1:]) != self.frame.cropped
        self.orders = [0 if changed and axis == separate else 1 for axis in back]

    def slab(self, outputs: slice, rows: slice) -> Tensor:
        """Return some outputs of a slab, (k, z, Y, X) float32, on the device of the values; may be a view of them."""
        values = self._first_axis(outputs, rows)
        for axis in (1, 2):
            values = self._nearest(values, axis) if self.orders[axis] == 0 else values
        size = self.frame.cropped[1:]
        if tuple(values.shape[2:]) == size:
            return values
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False)

    def _first_axis(self, outputs: slice, rows: slice) -> Tensor:
        size_in, size_out = self.values.shape[1], self.frame.cropped[0]
        if size_in == size_out:
            return self.values[outputs, rows].float().contiguous()
        matrix = spline_matrix(size_in, size_out, self.orders[0])[rows]
        used = np.flatnonzero(matrix.any(axis=0))
        reach = slice(int(used[0]), int(used[-1]) + 1)
        part = self.values[outputs, reach].float()
        return torch.einsum("zi,kiyx->kzyx", torch.tensor(matrix[:, reach], device=part.device), part)

    def _nearest(self, values: Tensor, axis: int) -> Tensor:
        size_in, size_out = values.shape[axis + 1], self.frame.cropped[axis]
        if size_in == size_out:
            return values
        nearest = spline_matrix(size_in, size_out, 0).argmax(1)
        return values.index_select(axis + 1, torch.from_numpy(nearest).to(values.device))
