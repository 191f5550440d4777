"""Where a U-Net pools, and by how much its patch must be divisible: a function of spacing and patch size alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_EDGE = 4  # smallest edge of the lowest-resolution feature map, voxels
ISOTROPY_FACTOR = 2  # axes within this factor of the finest spacing are pooled and convolved together


@dataclass(frozen=True)
class Topology:
    """Strides and kernel sizes per encoder stage, and the patch padded so that every stride divides it."""

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Return the product of the strides per axis."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch_size)))

    @property
    def stages(self) -> int:
        """Return the number of encoder stages."""
        return len(self.strides)


def find_topology(spacing: Sequence[float], patch: Sequence[float], *, min_edge: int = MIN_EDGE) -> Topology:
    """Return the topology for a spacing (mm) and a wanted patch size (voxels, may be fractional).

    An axis is halved while it keeps `min_edge` voxels (three times that if it is the only one left) and its spacing
    is within a factor of 2 of the finest axis that can still be halved; its kernel grows from 1 to 3 once its spacing
    is within a factor of 2 of the finest axis. Source: Isensee et al. 2021, Nature Methods 18 (nnU-Net v2 rules).
    """
    axes = range(len(spacing))
    size, current, kernel = list(patch), list(spacing), [1] * len(spacing)
    strides, kernels = [(1,) * len(spacing)], []
    while pooled := _axes_to_pool(size, current, min_edge):
        finest = min(current)
        kernel = [3 if kernel[a] == 3 or current[a] / finest < ISOTROPY_FACTOR else 1 for a in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in pooled else 1 for a in axes))
        for axis in pooled:
            current[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(spacing))
    divisors = [math.prod(stride[a] for stride in strides) for a in axes]
    padded = tuple(pad_to_multiple(patch[a], divisors[a]) for a in axes)
    return Topology(padded, tuple(strides), tuple(kernels))


def pad_to_multiple(size: float, divisor: int) -> int:
    """Return the smallest multiple of `divisor` that is not below `size`."""
    return math.ceil(size / divisor) * divisor


def _axes_to_pool(size: Sequence[float], spacing: Sequence[float], min_edge: int) -> list[int]:
    large = [axis for axis in range(len(size)) if size[axis] >= 2 * min_edge]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    pooled = [axis for axis in large if spacing[axis] / finest < ISOTROPY_FACTOR]
    if len(pooled) == 1 and size[pooled[0]] < 3 * min_edge:
        return []
    return pooled
