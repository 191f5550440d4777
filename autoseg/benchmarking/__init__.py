"""The referee: networks and methods compared on the same data, folds, augmentation and budget."""

from autoseg.benchmarking.budget import Budget
from autoseg.benchmarking.entry import Benchmark, benchmark, dry_run
from autoseg.benchmarking.question import Question

__all__ = ["Benchmark", "Budget", "Question", "benchmark", "dry_run"]
