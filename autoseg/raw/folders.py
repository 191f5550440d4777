"""Data set folders: nnU-Net's raw layout and the Medical Segmentation Decathlon's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from autoseg.errors import UserError
from autoseg.raw.dataset import Case, name_fault, safe_name
from autoseg.raw.description import Description
from autoseg.raw.images import ending_of
from autoseg.raw.problems import LONGEST_PATH, Problem, is_there, short
from autoseg.regular_files import MEND, irregular

FORM = "see docs/data-formats.md for the form"


@dataclass
class Found:
    """The cases of a data set and what is wrong with their files."""

    cases: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def complain(self, message: str, file: Path | None = None, **details: str) -> None:
        """Note a problem of a file."""
        self.problems.append(Problem(message, "" if file is None else short(file, LONGEST_PATH), **details))


def nnunet_cases(folder: Path, description: Description) -> Found:
    """List imagesTr with labelsTr (or the description's `labels_folder`), imagesUn, and imagesTs with labelsTs."""
    found = Found()
    ending = description.file_ending
    if ending is None:
        if not any(problem.field == "file_ending" for problem in description.problems):
            description.complain("file_ending", None, "it is missing", 'write for example "file_ending": ".nii.gz"')
        return found
    labels_folder = folder / description.json.get("labels_folder", "labelsTr")
    others = [folder / name for name in ("imagesTr", "imagesUn", "imagesTs", "labelsTs")]
    if _no_folders((labels_folder, *others), found):
        return found
    images = list_images(folder / "imagesTr", ending, len(description.channel_names), found)
    labels = _list_labels(labels_folder, ending, found)
    if not images:
        _nothing_found(folder / "imagesTr", ending, found)
    for case, files in images.items():
        if case not in labels:
            found.complain(
                "the training image has no label map",
                files[0],
                case=case,
                value=str(labels_folder / f"{case}{ending}"),
                mend=f"add {labels_folder.name}/{case}{ending}, or move the image to imagesUn",
            )
        else:
            found.cases.append(Case(case, files, labels[case]))
    for case in sorted(labels.keys() - images.keys()):
        found.complain(
            "the label map has no image",
            labels[case],
            case=case,
            mend=f"add imagesTr/{case}_0000{ending}, or remove the label map",
        )
    unlabelled = list_images(folder / "imagesUn", ending, len(description.channel_names), found)
    found.unlabelled = [Case(case, files, None) for case, files in unlabelled.items()]
    test = list_images(folder / "imagesTs", ending, len(description.channel_names), found)
    test_labels = _list_labels(folder / "labelsTs", ending, Found())
    found.test = [Case(case, files, test_labels.get(case), split="test") for case, files in test.items()]
    read = [*([folder / "imagesTr"] if images else []), *([labels_folder] if labels else []), *others[1:]]
    for place in read:  # of a folder where nothing was found, it is told already
        _left_out(place, ending, found)
    return found


def _left_out(folder: Path, ending: str, found: Found) -> None:
    left = of_other_endings(folder, ending)
    if left:
        found.complain(
            left_out(left, ending),
            left[0],
            field="file_ending",
            value=ending,
            mend="rename or convert them, or remove them; upper and lower case count",
            severity="warning",
        )


def of_other_endings(folder: Path, ending: str) -> list[Path]:
    """Return the images in a folder, sorted, that have another ending, such as .NII.GZ beside .nii.gz."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = [file for file in files if not file.name.startswith(".")]
    return [file for file in shown if ending_of(file) not in (None, ending) and file.is_file()]


def left_out(files: Sequence[Path], ending: str) -> str:
    """Return what to tell of files that nothing reads, for their ending."""
    return f"{len(files)} file(s) do not end with {ending} and are left out, such as {short(files[0].name)}"


def _no_folders(places: Iterable[Path], found: Found) -> bool:
    """Note what has the name of a folder and is none; tell whether there is any."""
    wrong = [place for place in places if os.path.lexists(place) and not is_there(place, folder=True)]
    for place in wrong:
        what = "this is a file with the name of a folder" if place.exists() else "the link leads to no folder"
        found.complain(what, place, mend="put the folder in its place")
    return bool(wrong)


def list_images(folder: Path, ending: str, channels: int, found: Found) -> dict[str, tuple[Path, ...]]:
    """Return the files of every case in a folder of CASE_0000.ext, sorted by name; note misnamed and missing files."""
    files: dict[str, dict[int, Path]] = {}
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    for file in list_files(folder, ending, found):
        match = pattern.fullmatch(file.name)
        if match is None:
            found.complain(
                f"the file name is not CASE_0000{ending}",
                file,
                mend="end image names with the four-digit number of their channel",
            )
        elif _name_ok(match.group(1), file, found):
            files.setdefault(match.group(1), {})[int(match.group(2))] = file
    images = {}
    for case, parts in sorted(files.items()):
        numbers = sorted(parts)
        images[case] = tuple(parts[number] for number in numbers)
        # One file may hold all channels; that shows when its header is read.
        expected = range(max(channels, 1)) if len(numbers) > 1 or numbers != [0] else (0,)
        for number in sorted(set(expected) - set(numbers)):
            message = f"channel file {case}_{number:04d}{ending} is missing"
            found.complain(message, images[case][0], case=case, mend="add the file, or remove the case")
        for number in sorted(set(numbers) - set(expected)):
            message = f"the file is channel {number}, but {channels} channel(s) are declared"
            found.complain(
                message, parts[number], case=case, mend="remove the file, or name the channel in dataset.json"
            )
    return images


def list_files(folder: Path, ending: str, found: Found) -> list[Path]:
    """Return the files of a folder, sorted by name; note what only has the name of one."""
    if not folder.is_dir():
        return []
    named = sorted(f for f in folder.iterdir() if f.name.endswith(ending) and not f.name.startswith("."))
    for path in named:
        if path.is_dir():
            found.complain("this is a folder with the name of a file", path, mend="rename or remove it")
        elif what := irregular(path):
            found.complain(what, path, mend=MEND)
        elif not path.exists():
            found.complain("the link leads to no file", path, mend="correct the link, or copy the file here")
    return [path for path in named if path.is_file()]


def _list_labels(folder: Path, ending: str, found: Found) -> dict[str, Path]:
    cases = {file.name.removesuffix(ending): file for file in list_files(folder, ending, found)}
    return {case: file for case, file in cases.items() if _name_ok(case, file, found)}


def _name_ok(case: str, file: Path, found: Found) -> bool:
    if not safe_name(case):
        found.complain(name_fault(case), file, mend="rename the file")
    return safe_name(case)


def _nothing_found(folder: Path, ending: str, found: Found) -> None:
    if not folder.is_dir():
        found.complain("the folder with the training images is missing", folder, mend="create imagesTr and labelsTr")
        return
    others = sorted({ending_of(file) or file.suffix for file in folder.iterdir() if file.is_file()})
    there = f"files there end with {', '.join(others)}" if others else "it is empty"
    found.complain(
        f"the folder has no file that ends with {ending}; {there}",
        folder,
        field="file_ending",
        mend="correct file_ending in dataset.json",
    )


def listed_pairs(folder: Path, description: Description) -> Found:
    """Read the lists `training` (image, label) and `test` of a Decathlon dataset.json; paths relative to the folder."""
    found = Found()
    for entry in _entries(description, "training"):
        if not (
            isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
        ):
            description.complain("training", entry, 'an entry must be {"image": path, "label": path}', FORM)
            continue
        _take(found.cases, found, folder / entry["image"], folder / entry["label"])
    for entry in _entries(description, "test"):
        image = entry.get("image") if isinstance(entry, dict) else entry
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not isinstance(label, (str, NoneType)):
            description.complain("test", entry, 'an entry must be a path, or {"image": path, "label": path}', FORM)
            continue
        _take(found.test, found, folder / image, folder / label if label else None, split="test")
    if description.file_ending is None and found.cases:
        description.file_ending = ending_of(found.cases[0].label)
    return found


def _entries(description: Description, name: str) -> list[Any]:
    entries = description.json.get(name, [])
    if isinstance(entries, list):
        return entries
    description.complain(name, entries, "it must be a list", FORM)
    return []


def _take(cases: list[Case], found: Found, image: Path, label: Path | None, split: str | None = None) -> None:
    ending = ending_of(image)
    if ending is None:
        found.complain("the format is not supported", image, mend="convert the file to .nii.gz")
        return
    case = image.name.removesuffix(ending)
    for file in (image, label):
        if file is not None and not is_there(file):
            mend = "correct the path in dataset.json"
            found.complain(irregular(file) or "the file does not exist", file, case=short(case), mend=mend)
            return
    if _name_ok(case, image, found):
        cases.append(Case(case, (image,), label, split=split))


def named_cases(folder: Path, description: Description) -> Found:
    """Read nnU-Net's field `dataset`: {"case": {"images": [paths], "label": path}}; paths relative to the folder."""
    found = Found()
    entries = description.json["dataset"]
    if not isinstance(entries, dict):
        raise UserError("field dataset must map cases to images and label", where=description.file, mend=FORM)
    for case, entry in sorted(entries.items()):
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not (
            isinstance(images, list) and images and all(isinstance(p, str) for p in images) and isinstance(label, str)
        ):
            what = 'an entry must be {"images": [paths], "label": path}'
            description.complain(f"dataset.{short(case)}", entry, what, FORM)
        elif _name_ok(case, description.file, found):
            files = tuple(folder / path for path in (*images, label))
            missing = [file for file in files if not (is_there(file) or is_there(file, folder=True))]
            for file in missing:
                found.complain(
                    irregular(file) or "the file does not exist",
                    file,
                    case=case,
                    mend="correct the path in dataset.json",
                )
            if not missing:
                found.cases.append(Case(case, files[:-1], files[-1]))
    return found
