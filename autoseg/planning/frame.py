"""What a planner works in: what all configurations of one plan share, and the size of one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from autoseg.planning import rules
from autoseg.planning.resources import Resources
from autoseg.plans import NetworkSpec


@dataclass(frozen=True)
class Frame:
    """What all configurations of one plan share, in transposed axes: the coarsest axis first."""

    fingerprint: Any  # autoseg.fingerprinting.Fingerprint
    dataset: Any  # autoseg.raw.Dataset
    resources: Resources

    @cached_property
    def target(self) -> np.ndarray:
        """Full-resolution spacing in mm, original axes."""
        return rules.target_spacing(self.fingerprint.spacings, self.fingerprint.shapes_after_crop)

    @cached_property
    def transposes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Forward and backward permutations of the axes."""
        return rules.transposes(self.target)

    @property
    def spacing(self) -> np.ndarray:
        """Full-resolution spacing in mm, transposed."""
        return self.target[list(self.transposes[0])]

    @cached_property
    def median(self) -> np.ndarray:
        """Median shape at full resolution, transposed."""
        shape = rules.median_shape(self.fingerprint.spacings, self.fingerprint.shapes_after_crop, self.target)
        return shape[list(self.transposes[0])]

    @property
    def flat(self) -> bool:
        """Whether the images are 2D."""
        return bool(self.median[0] == 1)

    @property
    def cases(self) -> int:
        """Number of training cases."""
        return self.fingerprint.num_cases


@dataclass(frozen=True)
class Sized:
    """One configuration's size: what the searches look for."""

    spacing: tuple[float, ...]
    median: tuple[float, ...]
    spec: NetworkSpec
    batch_size: int

    @property
    def coverage(self) -> float:
        """Voxels of the patch over voxels of the median image."""
        return math.prod(self.spec.patch_size) / math.prod(self.median)
