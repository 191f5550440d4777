"""Mergeable statistics of intensities: exact moments, and percentiles from weighted distinct values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.plans import ChannelIntensities

MOST_PER_CASE = 1 << 16  # distinct values kept of a case: exact for 16-bit integers
MOST_POOLED = 1 << 20
QUANTILES = (0.005, 0.5, 0.995)


@dataclass(frozen=True)
class ValueSketch:
    """The distribution of some values: distinct values in increasing order, weights of sum 1, and exact moments."""

    values: np.ndarray
    weights: np.ndarray
    mean: float
    variance: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, sample: np.ndarray) -> ValueSketch:
        """Return the distribution of a non-empty sample, every member with the same weight."""
        values, counts = _counted(sample)
        weights = counts / counts.sum()
        mean = float(values @ weights)
        variance = float((values - mean) ** 2 @ weights)
        return cls(*_reduced(values, weights, MOST_PER_CASE), mean, variance, float(values[0]), float(values[-1]))

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least `share` of the weight does not exceed."""
        position = np.searchsorted(np.cumsum(self.weights), share * self.weights.sum() - 1e-12)
        return float(self.values[min(position, len(self.values) - 1)])


def pool(sketches: Sequence[ValueSketch]) -> ChannelIntensities:
    """Return the statistics of the mixture of some distributions, all with the same weight."""
    mean = float(np.mean([one.mean for one in sketches]))
    variance = float(np.mean([one.variance + (one.mean - mean) ** 2 for one in sketches]))
    pooled = _mixture(sketches)
    low, median, high = (pooled.quantile(share) for share in QUANTILES)
    return ChannelIntensities(
        mean=mean,
        median=median,
        std=variance**0.5,
        min=min(one.minimum for one in sketches),
        max=max(one.maximum for one in sketches),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _mixture(sketches: Sequence[ValueSketch]) -> ValueSketch:
    values, weights = np.empty(0), np.empty(0)
    for start in range(0, len(sketches), 16):  # a few at a time: bounded memory for any number of cases
        part = sketches[start : start + 16]
        values = np.concatenate([values, *(one.values for one in part)])
        weights = np.concatenate([weights, *(one.weights for one in part)])
        distinct, inverse = np.unique(values, return_inverse=True)
        values, weights = _reduced(distinct, np.bincount(inverse, weights=weights), MOST_POOLED)
    return ValueSketch(values, weights, 0.0, 0.0, 0.0, 0.0)


def _counted(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values (float64, increasing) and their counts; integers of up to 16 bits by a histogram."""
    if sample.dtype.kind in "iu" and sample.dtype.itemsize <= 2:
        lowest = int(sample.min())
        counts = np.bincount(sample.astype(np.int64) - lowest)
        present = np.flatnonzero(counts)
        return (present + lowest).astype(np.float64), counts[present]
    values, counts = np.unique(sample, return_counts=True)
    return values.astype(np.float64), counts


def _reduced(values: np.ndarray, weights: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring values until at most `most` are left, in groups of equal weight."""
    if len(values) <= most:
        return values, weights
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    group = np.minimum((middle * most).astype(np.int64), most - 1)
    total = np.bincount(group, weights=weights, minlength=most)
    sums = np.bincount(group, weights=weights * values, minlength=most)
    used = total > 0
    return sums[used] / total[used], total[used]
