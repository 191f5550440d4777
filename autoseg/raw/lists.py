"""Case lists: a CSV or JSON file that names the files of every case, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.raw.dataset import Case, name_fault, safe_name
from autoseg.raw.description import Description
from autoseg.raw.folders import FORM, Found
from autoseg.raw.images import ending_of
from autoseg.raw.problems import is_there, short
from autoseg.raw.tables import GROUP_COLUMNS, NAME_COLUMNS, SPLITS, read_rows
from autoseg.regular_files import irregular

KNOWN = {"images", "image", "label", "split", "text", "annotated", "attributes", *NAME_COLUMNS, *GROUP_COLUMNS}


def csv_cases(file: Path, description: Description) -> Found:
    """Read a CSV or TSV list; see `open_dataset` for its columns."""
    found, first = Found(), None
    for line, row in read_rows(file):
        columns = [name for name in row if name == "image" or name.startswith("image_")]
        first = first or columns
        entry: dict[str, Any] = {name: value for name, value in row.items() if value and name not in columns}
        entry["images"] = [row[name] for name in columns if row[name]]
        if "annotated" in entry:
            entry["annotated"] = [name.strip() for name in entry["annotated"].split(";") if name.strip()]
        entry["attributes"] = {name: value for name, value in entry.items() if name not in KNOWN - {"group"}}
        _take(entry, f"line {line}", file, found)
    if first == []:
        raise UserError("the list has no column image or image_...", where=file, mend="name the image columns so")
    if not description.channel_names and first:
        names = [name.removeprefix("image_") for name in first]
        description.channel_names = tuple(names)
        description.json["channel_names"] = {str(index): name for index, name in enumerate(names)}
        description.problems[:] = [p for p in description.problems if p.field != "channel_names"]
    return found


def json_cases(file: Path, description: Description) -> Found:
    """Read the field `cases` of a JSON list: a list of objects, or the name of a CSV file beside it."""
    entries = description.json["cases"]
    if isinstance(entries, str):
        if not is_there(file.parent / entries):
            what = f"field cases names {short(repr(entries))}, which does not exist"
            raise UserError(what, where=file, mend="name a CSV file beside this one, or list the cases")
        return csv_cases(file.parent / entries, description)
    if not isinstance(entries, list):
        raise UserError("field cases must be a list of objects, or the name of a CSV file", where=file, mend=FORM)
    found = Found()
    for index, entry in enumerate(entries):
        place = f"cases[{index}]"
        problem = _wrong_type(entry)
        if problem:
            found.complain(problem, file, field=place, mend=FORM)
            continue
        entry = dict(entry)
        if "image" in entry:
            entry["images"] = [entry.pop("image")]
        _take(entry, place, file, found)
    return found


def _wrong_type(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "a case must be an object"
    images = entry.get("images", [entry.get("image")])
    if not isinstance(images, list) or not images or not all(isinstance(path, str) for path in images):
        return "images must be a list of paths"
    for name in ("label", "text", "split", *NAME_COLUMNS):
        if not isinstance(entry.get(name, ""), str):
            return f"{name} must be text"
    if not isinstance(entry.get("attributes", {}), dict):
        return "attributes must be an object"
    annotated = entry.get("annotated", [])
    if not isinstance(annotated, list) or not all(isinstance(name, str) for name in annotated):
        return "annotated must be a list of class names"
    return None


def _take(entry: dict[str, Any], place: str, file: Path, found: Found) -> None:
    images = tuple(file.parent / path for path in entry["images"])
    label = file.parent / entry["label"] if entry.get("label") else None
    if not images:
        found.complain("the case names no image", file, field=place, mend="name its image, or remove the case")
        return
    name = next((entry[column] for column in NAME_COLUMNS if entry.get(column)), None) or _name_of(images[0])
    if not safe_name(name):
        mend = "use a name without /, \\, .. and control characters"
        found.complain(name_fault(name), file, field=place, mend=mend)
        return
    split = SPLITS.get(str(entry.get("split", "")).lower())
    if entry.get("split") and split is None:
        message = f"split {short(repr(entry['split']))} is not one of train, val, test, unlabelled"
        mend = "write one of them, or leave the split empty"
        found.complain(message, file, case=name, field=place, mend=mend)
    missing = [path for path in (*images, label) if path and not (is_there(path) or is_there(path, folder=True))]
    for path in missing:
        mend = f"correct {place} of {file.name}; paths are relative to the folder of the list"
        found.complain(irregular(path) or "the file does not exist", path, case=name, field=place, mend=mend)
    if missing:
        return
    case = Case(
        id=name,
        images=images,
        label=label,
        group=next((str(entry[column]) for column in GROUP_COLUMNS if entry.get(column)), None),
        split=split,
        attributes=dict(entry.get("attributes", {})),
        text=entry.get("text") or None,
        annotated=tuple(entry["annotated"]) if entry.get("annotated") else None,
    )
    place_case(case, found)


def place_case(case: Case, found: Found) -> None:
    """Put a case where its split says, else by whether it has a label map."""
    if case.split == "test":
        found.test.append(case)
    elif case.split == "unlabelled" or case.label is None:
        found.unlabelled.append(replace(case, split=None))
    else:
        found.cases.append(case)


def _name_of(image: Path) -> str:
    """Return the case name that an image file stands for: its name without ending and channel number."""
    name = image.name.removesuffix(ending_of(image) or "")
    return name[:-5] if len(name) > 5 and name[-5] == "_" and name[-4:].isdigit() else name


def usual_ending(cases: Iterable[Case]) -> str:
    """Return the ending for label maps of a list that does not say: that of its first label map."""
    return next((ending for case in cases if case.label and (ending := ending_of(case.label))), ".nii.gz")
