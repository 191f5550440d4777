"""Selection: the best configuration or ensemble, its post-processing, and the model folder."""

from autoseg.selection.best import find_best
from autoseg.selection.postprocessing import Postprocessing, determine_postprocessing

__all__ = ["Postprocessing", "determine_postprocessing", "find_best"]
