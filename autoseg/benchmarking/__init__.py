"""The referee: networks and methods compared on the same data, folds, augmentation and budget."""

from autoseg.benchmarking.entry import benchmark
from autoseg.benchmarking.question import Question

__all__ = ["Question", "benchmark"]
