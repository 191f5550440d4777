"""The rules of preprocessing written down naively with scipy and skimage, as the oracle of the fast code."""

import numpy as np
from scipy import ndimage
from skimage.transform import resize


def resize_image(volume, shape, axis, order=3):
    """`axis` apart: slice by slice in the plane, then the nearest slice."""
    volume = volume.astype(np.float64)
    if axis is None:
        return resize(volume, shape, order, mode="edge", anti_aliasing=False, clip=True)
    slices = np.moveaxis(volume, axis, 0)
    plane = tuple(size for index, size in enumerate(shape) if index != axis)
    resized = np.stack([resize(one, plane, order, mode="edge", anti_aliasing=False, clip=True) for one in slices])
    scale = volume.shape[axis] / shape[axis]
    rows = scale * (np.arange(shape[axis]) + 0.5) - 0.5
    chosen = ndimage.map_coordinates(np.arange(len(slices)), rows[None], order=0, mode="nearest")
    return np.moveaxis(resized[chosen], 0, axis)


def resize_labels(label, shape, axis):
    """Per label in increasing order: linear interpolation of its mask, at least one half (but for rounding)."""
    result = np.zeros(shape, dtype=np.int16)
    for value in np.unique(label):
        result[resize_image((label == value).astype(float), shape, axis, order=1) >= 0.5 - 1e-9] = value
    return result


def pick_axis(current, new):
    for spacing in (current, new):
        if max(spacing) / min(spacing) > 3:
            coarse = np.flatnonzero(np.asarray(spacing) == max(spacing))
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def preprocess(image, label, spacing, target, normalize, use_mask):
    """Crop, mark, normalise by `normalize(values) -> values`, resample. Returns image, label, box."""
    mask = ndimage.binary_fill_holes((image != 0).any(axis=0))
    box = tuple(slice(int(found.min()), int(found.max()) + 1) for found in np.nonzero(mask))
    image, label, mask = image[(slice(None), *box)].astype(np.float64), label[box].copy(), mask[box]
    label[(label == 0) & ~mask] = -1
    for volume in image:
        where = label >= 0 if use_mask else np.ones(mask.shape, dtype=bool)
        volume[where] = normalize(volume[where])
    shape = tuple(round(old / new * size) for old, new, size in zip(spacing, target, mask.shape, strict=True))
    if shape == mask.shape:
        return image, label, box
    axis = pick_axis(spacing, target)
    return np.stack([resize_image(volume, shape, axis) for volume in image]), resize_labels(label, shape, axis), box
