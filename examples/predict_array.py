"""Segment one image that is already an array: python examples/predict_array.py MODEL_FOLDER IMAGE."""

import sys
from pathlib import Path

from autoseg import Predictor
from autoseg.raw import read_image, write_label


def main(model: Path, image_file: Path) -> None:
    """Read, segment, and write the label map beside the image."""
    predictor = Predictor.load(model)
    image = read_image([image_file], channels=1)
    prediction = predictor.predict_array(image.data, image.geometry.spacing, uncertainty=True)
    target = image_file.with_name("segmentation.nii.gz")
    write_label(target, prediction.label, image.geometry)
    print(
        f"{target}: {(prediction.label > 0).sum()} foreground voxels, uncertainty {prediction.uncertainty.mean():.4f}"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
