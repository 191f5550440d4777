"""One batch of patches, and one that still has to be augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from autoseg.batches.augmentation.parameters import SampleParameters
from autoseg.batches.moving import to_device


def _moved(record: Any, device: torch.device) -> Any:
    """Move every tensor field of a data class."""
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor) and value.device != device:
            changes[field.name] = to_device(value, device)
    return replace(record, **changes) if changes else record


@dataclass(frozen=True)
class Batch:
    """Patches of one step, axes (B, C, *S)."""

    image: Tensor  # (B, C, *S) float32
    segmentation: Tensor  # (B, *S) int16, internal values; -1 outside before augmentation, the ignore value is kept
    cases: tuple[str, ...]
    annotated: Tensor | None = None  # (B, K + 1) bool over the internal values 0..K; None: all are annotated
    previous: Tensor | None = None  # (B, *S) int16, label map of the previous stage of a cascade
    step: int = 0

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on `device`."""
        return _moved(self, torch.device(device))


@dataclass(frozen=True)
class WarpSource:
    """The larger boxes of some samples of a batch that will be rotated or scaled."""

    positions: tuple[int, ...]  # n places in the batch
    image: Tensor  # (n, C, *box) float32
    segmentation: Tensor  # (n, *box) int16
    previous: Tensor | None  # (n, *box) int16
    matrices: np.ndarray  # (n, d, d) from patch voxel to box voxel; d = 2 for slices and flat volumes
    centres: np.ndarray  # (n, d) where the centre of the patch lies, in box voxels

    def to(self, device: torch.device | str) -> WarpSource:
        """Return the boxes on `device`."""
        return _moved(self, torch.device(device))


@dataclass(frozen=True)
class CutBatch(Batch):
    """A batch before augmentation: what is only cropped lies in place, mirrored; the rest is cut group by group."""

    parameters: tuple[SampleParameters, ...] = ()
    warps: tuple[Callable[[], WarpSource], ...] = ()  # each cuts the boxes of a group: all at once would be large
