"""From raw cases to what networks see: crop, normalise, resample, and the store of a whole data set."""

from autoseg.preprocessing.case import preprocess_case, preprocess_cropped
from autoseg.preprocessing.crop import Cropped, crop
from autoseg.preprocessing.dataset import preprocess
from autoseg.preprocessing.geometry import new_shape, separate_axis, target_spacing
from autoseg.preprocessing.locations import class_locations
from autoseg.preprocessing.normalise import normalise
from autoseg.preprocessing.resample import Resampler, resample_image, spline_matrix
from autoseg.preprocessing.resample_labels import resample_labels
from autoseg.store.records import CaseProperties, Preprocessed

__all__ = [
    "CaseProperties",
    "Cropped",
    "Preprocessed",
    "Resampler",
    "class_locations",
    "crop",
    "new_shape",
    "normalise",
    "preprocess",
    "preprocess_case",
    "preprocess_cropped",
    "resample_image",
    "resample_labels",
    "separate_axis",
    "spline_matrix",
    "target_spacing",
]
