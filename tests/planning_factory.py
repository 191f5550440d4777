"""Small fingerprints and data sets for the tests of planning, without images."""

from pathlib import Path
from types import SimpleNamespace

from autoseg.labels import labels_from_description
from autoseg.plans import ChannelIntensities


def make_fingerprint(spacings, shapes, *, channels=("MRI",), labels=3, cases=None, relative_size=1.0):
    """The fields of autoseg.fingerprinting.Fingerprint that planners read; `cases` repeats one spacing and shape."""
    if cases is not None:
        spacings, shapes = [spacings] * cases, [shapes] * cases
    one = ChannelIntensities(mean=0, median=0, std=1, min=-1, max=1, percentile_00_5=-1, percentile_99_5=1)
    return SimpleNamespace(
        dataset_name="Dataset001_Test",
        num_cases=len(spacings),
        channel_names=tuple(channels),
        spacings=[tuple(map(float, spacing)) for spacing in spacings],
        shapes_after_crop=[tuple(shape) for shape in shapes],
        intensities=(one,) * len(channels),
        median_relative_size=relative_size,
        num_labels=labels,
    )


def make_dataset(labels=3, *, channels=("MRI",)):
    """A data set of `labels` classes, background included, or with the `labels` of a dataset.json."""
    if isinstance(labels, int):
        labels = {"background": 0} | {f"label{value}": value for value in range(1, labels)}
    return SimpleNamespace(
        name="Dataset001_Test",
        folder=Path("."),
        channel_names=tuple(channels),
        labels=labels_from_description({"labels": labels}),
        cases=(),
        description={},
    )
