"""Write a data set whose images have the attention maps of a frozen ViT as further channels.

    python -m autoseg.architectures.blocks.map_channels DATASET OUTPUT --vit-file dino_vits8.pth

Maps are those of whole slices, computed once. Their channels are called `attention_map`, which tells the engine to
leave their values as they are. `--images` does the same for a folder of images to predict.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from autoseg.architectures.blocks.attention_maps import AttentionViT, attention_maps, load_vit
from tqdm import tqdm

from autoseg.errors import UserError
from autoseg.plans import COMPUTED_CHANNEL
from autoseg.raw import (
    Case,
    list_prediction_cases,
    open_dataset,
    read_image,
    read_label,
    write_label,
    write_probabilities,
)
from autoseg.storage import write_json

ENDING = ".nii.gz"  # a format that holds several channels of float


def write_dataset(dataset: str | Path, output: Path, vit: AttentionViT) -> None:
    """Write images with maps, labels and dataset.json of a data set into a new folder."""
    source = open_dataset(dataset)
    if output.exists() and any(output.iterdir()):
        raise UserError("the folder is not empty", where=output, mend="give a new folder")
    channels = len(source.channel_names)
    for case in tqdm(source.cases, desc="training images"):
        geometry = write_image(case, output / "imagesTr", channels, vit)
        write_label(output / "labelsTr" / f"{case.id}{ENDING}", read_label(case.label)[0], geometry)
    for folder, cases in (("imagesUn", source.unlabelled), ("imagesTs", source.test)):
        for case in tqdm(cases, desc=folder, disable=not cases):
            write_image(case, output / folder, channels, vit)
    names = (*source.channel_names, *[COMPUTED_CHANNEL] * vit.size.heads)
    description = source.description | {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "file_ending": ENDING,
        "numTraining": len(source.cases),
    }
    write_json(output / "dataset.json", description)


def write_images(folder: Path, output: Path, vit: AttentionViT, *, channels: int, file_ending: str) -> None:
    """Write the images of a folder with their maps into a new folder, to be predicted."""
    for case in tqdm(list_prediction_cases(folder, channels=channels, file_ending=file_ending), desc="images"):
        write_image(case, output, channels, vit)


def write_image(case: Case, folder: Path, channels: int, vit: AttentionViT):
    """Write one image with its maps, all channels in one file; returns its grid."""
    image = read_image(case.images, channels=channels)
    maps = volume_maps(vit, image.data, image.geometry.spacing)
    folder.mkdir(parents=True, exist_ok=True)
    write_probabilities(folder / f"{case.id}_0000{ENDING}", np.concatenate([image.data, maps]), image.geometry)
    return image.geometry


def volume_maps(vit: AttentionViT, data: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return maps (heads, Z, Y, X) for an image (C, Z, Y, X), slice by slice along the axis of the coarsest spacing."""
    axis = int(np.argmax(spacing)) if data.shape[1] > 1 else 0
    volume = torch.from_numpy(np.ascontiguousarray(np.moveaxis(data, 1 + axis, 1), dtype=np.float32))
    slices = [attention_maps(vit, volume[None, :, number]) for number in range(volume.shape[1])]
    return np.moveaxis(torch.cat(slices).transpose(0, 1).numpy(), 1, 1 + axis)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="map_channels", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="a data set folder or case list")
    parser.add_argument("output", type=Path, help="the new data set's folder, or with --images that of the images")
    parser.add_argument("--vit-file", type=Path, required=True, help="weights of a DINO ViT, .pth or .safetensors")
    parser.add_argument("--images", type=Path, help="a folder of images like the data set's, to be predicted")
    given = parser.parse_args(arguments)
    try:
        vit = load_vit(given.vit_file)
        if given.images is None:
            write_dataset(given.dataset, given.output, vit)
        else:
            source = open_dataset(given.dataset)
            ending = source.description.get("file_ending", source.file_ending)
            write_images(given.images, given.output, vit, channels=len(source.channel_names), file_ending=ending)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
