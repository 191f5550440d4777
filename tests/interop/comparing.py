"""Comparing label maps."""

import nibabel as nib
import numpy as np


def read(path):
    """Return the array of an image file, axes (z, y, x)."""
    if path.suffix == ".png":
        from skimage.io import imread

        return imread(path)[np.newaxis]
    return np.asarray(nib.load(path).dataobj).T


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of the voxels that are foreground in either map and have the same label in both."""
    foreground = (ours > 0) | (theirs > 0)
    assert foreground.any()
    return float((ours == theirs)[foreground].mean())


def dice_difference(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference, over the labels of the truth, of the Dice of two predictions."""

    def dice(label, value):
        return 2 * ((label == value) & (truth == value)).sum() / ((label == value).sum() + (truth == value).sum())

    return max(abs(dice(ours, value) - dice(theirs, value)) for value in np.unique(truth) if value)
