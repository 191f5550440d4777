"""Resampling of a volume and of a label map: autoseg against skimage with the same rule, one thread, one process.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/resampling.py [--quick]

Prints JSON: seconds, ratios and the largest difference in standard deviations of the image.
"""

import argparse
import json
import time

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from autoseg.preprocessing import resample_image, resample_labels

SPACINGS = {"current_spacing": (1.0, 1.0, 1.0), "new_spacing": (0.67, 1.25, 1.25)}


def timed(function):
    """Return (seconds, result) of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def skimage_labels(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The rule of label maps, one label after the other."""
    result = np.zeros(shape, dtype=np.int16)
    for value in np.unique(label):
        mask = resize((label == value).astype(float), shape, 1, mode="edge", clip=True, anti_aliasing=False)
        result[mask >= 0.5] = value
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of the volume")
    quick = parser.parse_args().quick
    shape, wanted = ((100, 160, 160), (150, 128, 128)) if quick else ((200, 320, 320), (300, 256, 256))
    random = np.random.default_rng(0)
    image = ndimage.gaussian_filter(random.normal(size=shape).astype(np.float32), 1)
    smooth = ndimage.gaussian_filter(random.normal(size=shape).astype(np.float32), 12)
    label = np.digitize(smooth, np.quantile(smooth, [0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98])).astype(np.int16)
    ours, result = timed(lambda: resample_image(image[None], wanted, **SPACINGS))
    theirs, expected = timed(lambda: resize(image.astype(float), wanted, 3, mode="edge", anti_aliasing=False))
    ours_label, result_label = timed(lambda: resample_labels(label, wanted, **SPACINGS))
    theirs_label, expected_label = timed(lambda: skimage_labels(label, wanted))
    figures = {
        "shape": shape,
        "new_shape": wanted,
        "image": {"autoseg_s": ours, "skimage_s": theirs, "ratio": theirs / ours},
        "largest_difference_in_std": float(np.abs(result[0] - expected).max() / image.std()),
        "labels": {"autoseg_s": ours_label, "skimage_s": theirs_label, "ratio": theirs_label / ours_label},
        "label_voxels_that_differ": int((result_label != expected_label).sum()),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
