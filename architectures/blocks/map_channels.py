"""Write a data set whose images have the attention maps of a frozen ViT as further channels.

    python -m autoseg.architectures.blocks.map_channels DATASET OUTPUT --vit-file dino_vits8.pth

Maps are those of whole slices, computed once. Their channels are called `attention_map`, which tells the engine to
leave their values as they are. Groups, splits, attributes and texts of cases go along; dataset.json records the ViT.
`--images` does the same for a folder of images to predict, `--for` the data set with maps or the model trained on it:
the ViT has to be the one recorded there, and is recorded beside the images, where `autoseg predict` looks.

The ViT sees raw slices at their own spacing, scaled by percentiles of the whole slice; the trainer `dino` shows it the
plan's patches, normalised, at the target spacing, scaled by percentiles of the patch. So pretrain with plans whose
patches are the slices and whose spacing is that of the images. Three channels are taken as the raw colours, scaled
together, also where the plan normalises each channel for itself.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoseg.architectures.blocks.attention_maps import RECORD, AttentionViT, attention_maps, load_vit, record_of
from tqdm import tqdm

from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, read_member_plans, read_model
from autoseg.plans import COMPUTED_CHANNEL
from autoseg.raw import (
    Case,
    Dataset,
    list_prediction_cases,
    open_dataset,
    place_of,
    read_image,
    read_label,
    write_label,
    write_probabilities,
)
from autoseg.raw.splits import SPLITS_FILE, own_splits
from autoseg.storage import write_json, write_text
from autoseg.workspace import Workspace

ENDING = ".nii.gz"  # a format that holds several channels of float
NOT_THERE = {"folder", "labels_folder", "dataset", "training", "test", "cases", "overwrite_image_reader_writer"}


def write_dataset(
    source: Dataset, output: Path, vit: AttentionViT, record: Mapping[str, Any], workspace: Workspace | None = None
) -> None:
    """Write images with maps, labels, tables and dataset.json of a data set into a new folder."""
    if output.exists() and any(output.iterdir()):
        raise UserError("the folder is not empty", where=output, mend="give a new folder")
    channels = len(source.channel_names)
    for part, cases in (("Tr", source.cases), ("Un", source.unlabelled), ("Ts", source.test)):
        for case in tqdm(cases, desc=f"images{part}", disable=not cases):
            geometry = write_image(case, output / f"images{part}", channels, vit)
            if case.label is not None and part != "Un":
                write_label(output / f"labels{part}" / f"{case.id}{ENDING}", read_label(case.label)[0], geometry)
    write_tables(source, output, workspace)
    write_json(output / "dataset.json", describe(source, vit, record))


def describe(source: Dataset, vit: AttentionViT, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new dataset.json: what the old one says but of places, the maps, groups and annotated classes."""
    names, cases = (*source.channel_names, *[COMPUTED_CHANNEL] * vit.size.heads), all_cases(source)
    kept = {name: value for name, value in source.description.items() if name not in NOT_THERE}
    return kept | {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "file_ending": ENDING,
        "numTraining": len(source.cases),
        "groups": {case.id: case.group for case in cases if case.group is not None},
        "annotated": {case.id: list(case.annotated) for case in cases if case.annotated is not None},
        RECORD: dict(record),
    }


def write_tables(source: Dataset, output: Path, workspace: Workspace | None) -> None:
    """Write what dataset.json cannot hold of the cases, wherever it was read from: splits, texts and attributes."""
    cases = all_cases(source)
    splits = [(case.id, case.split) for case in cases if case.split in ("train", "val")]
    if splits:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("case", "split"), *splits])
        write_text(output / "cases.csv", table.getvalue())
    told = {case.id: case.attributes | ({} if case.text is None else {"prompt": case.text}) for case in cases}
    if any(told.values()):
        write_json(output / "texts.json", {case: entry for case, entry in told.items() if entry})
    folds = own_splits(source, workspace)
    if folds is not None:
        write_json(output / SPLITS_FILE, folds)


def all_cases(source: Dataset) -> tuple[Case, ...]:
    """Return training cases last, which win where a test case has the same name."""
    return (*source.test, *source.unlabelled, *source.cases)


def check_same_vit(reference: str, file: Path, record: Mapping[str, Any], workspace: Workspace) -> None:
    """Raise UserError unless the maps of a data set or model are those of the ViT with this record."""
    found = recorded(reference, workspace)
    if not found:
        raise UserError(
            "nothing tells which ViT the attention maps are from", where=reference,
            mend="give the data set that map_channels wrote, or the model trained on it; write older ones anew",
        )  # fmt: skip
    for other in found:
        differing = [name for name in record if record[name] != other.get(name)]
        if differing:
            raise UserError(
                f"the ViT is not the one of {reference}: its {' and '.join(differing)} differ(s)", where=file,
                mend=f"give the file whose SHA-256 is {other.get('vit_hash')}",
            )  # fmt: skip


def recorded(reference: str, workspace: Workspace) -> list[Mapping[str, Any]]:
    """Return what a data set, or each network of a model folder, records of the ViT."""
    folder = Path(reference)
    if (folder / MODEL_FILE).is_file():
        members = read_model(folder, verify=False).members
        plans = [read_member_plans(folder, member).configuration(member.configuration) for member in members]
        found = [configuration.network.options.get("maps_vit") for configuration in plans]
    else:
        found = [open_dataset(reference, workspace).description.get(RECORD)]
    return [record for record in found if isinstance(record, Mapping)]


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
    parser.add_argument("dataset", help="a data set: folder, case list, or name or number in the workspace")
    parser.add_argument("output", type=Path, help="the new data set's folder, or with --images that of the images")
    parser.add_argument("--vit-file", type=Path, required=True, help="weights of a DINO ViT, .pth or .safetensors")
    parser.add_argument("--images", type=Path, help="a folder of images like the data set's, to be predicted")
    parser.add_argument("--for", dest="reference", metavar="DATASET|MODEL", help="with --images: what they are for")
    parser.add_argument("--workspace", type=Path, help="folder of raw data, preprocessed data and results")
    given = parser.parse_args(arguments)
    try:
        if (given.images is None) != (given.reference is None):
            raise UserError("--images and --for go together", mend="--for: the data set with maps, or its model folder")
        vit, workspace = load_vit(given.vit_file), place_of(given.workspace)
        record, source = record_of(given.vit_file, vit), open_dataset(given.dataset, workspace)
        if given.images is None:
            write_dataset(source, given.output, vit, record, workspace)
        else:
            check_same_vit(given.reference, given.vit_file, record, workspace)
            ending = source.description.get("file_ending", source.file_ending)
            write_images(given.images, given.output, vit, channels=len(source.channel_names), file_ending=ending)
            names = (*source.channel_names, *[COMPUTED_CHANNEL] * vit.size.heads)
            told = {"channel_names": {str(number): name for number, name in enumerate(names)}, RECORD: record}
            write_json(given.output / "dataset.json", told)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
