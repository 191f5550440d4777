"""nnU-Net's measure of training memory: the sum of all convolution outputs of one sample, in elements.

Deep supervision is not counted. `spec.patch_size` must be a multiple of the strides. Other architectures are measured
by tracing, see `autoseg.planning.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from autoseg.plans import NetworkSpec


def plain_feature_map_sum(spec: NetworkSpec, num_labels: int) -> int:
    """Return the sum for the plain U-Net; `num_labels` counts the entries of `labels` in dataset.json."""
    encoder = sum(
        spec.blocks_encoder[stage] * spec.features[stage] * voxels for stage, voxels in enumerate(_voxels(spec))
    )
    return encoder + _decoder(spec, num_labels)


def residual_feature_map_sum(spec: NetworkSpec, num_labels: int) -> int:
    """Return the sum for the residual encoder U-Net: stem, two outputs per block, one more where the skip projects."""
    sizes = list(_voxels(spec))
    total, channels = spec.features[0] * sizes[0], spec.features[0]
    for stage, voxels in enumerate(sizes):
        outputs = 2 * spec.blocks_encoder[stage]
        outputs += channels != spec.features[stage] or any(step > 1 for step in spec.strides[stage])
        channels = spec.features[stage]
        total += outputs * channels * voxels
    return total + _decoder(spec, num_labels)


def _decoder(spec: NetworkSpec, num_labels: int) -> int:
    """Convolutions and the transposed convolution of every decoder stage, and the head at full resolution."""
    sizes = list(_voxels(spec))
    blocks = reversed(spec.blocks_decoder)  # from the highest resolution down
    total = sum((count + 1) * spec.features[stage] * sizes[stage] for stage, count in enumerate(blocks))
    return total + (num_labels * sizes[0] if spec.blocks_decoder else 0)


def _voxels(spec: NetworkSpec) -> Iterator[int]:
    """Yield the number of voxels of each encoder stage."""
    size = spec.patch_size
    for stride in spec.strides:
        size = tuple(edge // step for edge, step in zip(size, stride, strict=True))
        yield math.prod(size)
