"""What the numbers of a plan may be: bounds that no sensible plan meets, and that no machine could do beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

MOST_STAGES = 16
MOST_VOXELS = 2**31  # of all patches of a batch; planners reach 5 million
MOST_WEIGHTS = 2**34  # of one dense convolution per block, 64 GiB; planners reach 50 million

Channels = Annotated[int, Field(ge=1, le=65536)]
Edge = Annotated[int, Field(ge=1, le=65536)]  # voxels
Stride = Annotated[int, Field(ge=1, le=64)]
KernelEdge = Annotated[int, Field(ge=1, le=127)]
Blocks = Annotated[int, Field(ge=1, le=256)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
Spacing = Annotated[float, Field(ge=1e-6, le=1e5, allow_inf_nan=False)]  # mm, of what is resampled
StoredSpacing = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # mm, of the data
MedianEdge = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]  # voxels
Intensity = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def weights_of_convolutions(
    kernel_sizes: Sequence[Sequence[int]], features: Sequence[int], blocks: Sequence[int]
) -> int:
    """Return how many weights a network has with `blocks` dense convolutions per stage."""
    stages = zip(kernel_sizes, features, blocks, strict=True)
    return sum(number * math.prod(kernel) * width**2 for kernel, width, number in stages)


def check_batch(patch_size: Sequence[int], batch_size: int = 1) -> None:
    """Raise ValueError where a batch has more voxels than any device could hold."""
    voxels = math.prod(patch_size) * batch_size
    if voxels > MOST_VOXELS:
        of = f"batch_size {batch_size} with " if batch_size > 1 else ""
        raise ValueError(f"{of}patch_size {tuple(patch_size)} has {voxels} voxels, more than {MOST_VOXELS}")
