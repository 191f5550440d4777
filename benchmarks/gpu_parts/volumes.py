"""Volumes of smoothed noise with two labels: speed depends on their size alone, and none need be brought along."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpu_parts.sizes import Sizes

SIGMA = 3.0  # voxels
LABELS = {"background": 0, "a": 1, "b": 2}


def volumes(sizes: Sizes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images (Z, Y, X) float32 of mean 0 and deviation 1, and label maps uint8."""
    from scipy import ndimage

    random = np.random.default_rng(0)
    for _ in range(sizes.cases):
        noise = ndimage.gaussian_filter(random.standard_normal(sizes.volume, dtype=np.float32), SIGMA)
        noise /= noise.std()
        yield noise, np.digitize(noise, (0.8, 1.6)).astype(np.uint8)
