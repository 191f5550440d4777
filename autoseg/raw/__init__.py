"""Raw data: data sets and case lists, readers and writers of images and label maps, the check, the splits."""

from autoseg.raw.check import check
from autoseg.raw.dataset import Case, Dataset
from autoseg.raw.geometry import Comparison, Geometry, Image, compare, label_grid_error, resample_label
from autoseg.raw.images import (
    probability_ending,
    read_geometry,
    read_image,
    read_label,
    write_label,
    write_probabilities,
)
from autoseg.raw.opening import open_dataset, place_of
from autoseg.raw.prediction_cases import describe_images, list_prediction_cases
from autoseg.raw.problems import CheckReport, Problem
from autoseg.raw.splits import make_splits, split_of
from autoseg.raw.told import told

__all__ = [
    "Case",
    "CheckReport",
    "Comparison",
    "Dataset",
    "Geometry",
    "Image",
    "Problem",
    "check",
    "compare",
    "describe_images",
    "label_grid_error",
    "list_prediction_cases",
    "make_splits",
    "open_dataset",
    "place_of",
    "probability_ending",
    "read_geometry",
    "read_image",
    "read_label",
    "resample_label",
    "split_of",
    "told",
    "write_label",
    "write_probabilities",
]
