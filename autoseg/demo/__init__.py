"""The demo: the whole pipeline on bundled real data."""

from autoseg.demo.pipeline import Summary, bundled_dataset, copy_dataset, run

__all__ = ["Summary", "bundled_dataset", "copy_dataset", "run"]
