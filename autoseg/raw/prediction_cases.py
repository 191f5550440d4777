"""What a folder of new images holds."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.raw import dicom
from autoseg.raw.dataset import Case, name_fault, safe_name
from autoseg.raw.folders import Found, left_out, list_files, list_images, of_other_endings
from autoseg.raw.images import ending_of
from autoseg.raw.problems import short
from autoseg.regular_files import irregular, refuse_irregular
from autoseg.storage import LEFTOVERS, read_json

NO_IMAGES = ("._", *LEFTOVERS)  # what macOS writes beside a file, and what killed commands were writing

log = logging.getLogger(__name__)


def list_prediction_cases(
    folder: Path, *, channels: int, file_ending: str, failures: dict[str, UserError] | None = None
) -> tuple[Case, ...]:
    """Return the cases of a folder, sorted by name; a single image file or a DICOM series folder is one case.

    Taken are CASE_0000.ext (and _0001, ...), plain CASE.ext where one file holds all channels, and sub-folders with one
    DICOM series each. Files of `file_ending` come first; without any, the other supported format that is there.
    Cases that cannot be used, such as one that lacks a channel, are put into `failures` by name if that is given and
    there are others that can.
    """
    folder = Path(folder)
    refuse_irregular(folder)
    if folder.is_file() and ending_of(folder):
        return (_case(_plain_name(folder.name, ending_of(folder)), (folder,)),)
    if not folder.is_dir():
        raise UserError("the folder does not exist", where=folder, mend="correct the path")
    if dicom.is_series(folder):
        return (_case(folder.resolve().name, (folder,)),)
    ending = _ending(folder, file_ending)
    found = Found()
    _take_series(folder, found)
    if ending is not None:
        _take_files(folder, ending, channels, found)
    bad = _failures(found, ending or file_ending)
    cases = [case for case in found.cases if case.id not in bad]
    if bad and (failures is None or not cases):
        raise next(iter(bad.values()))
    if bad:
        failures.update(bad)
    if not cases:
        raise UserError(
            f"the folder has no images: no {file_ending} file, no file of another format, no DICOM series",
            where=folder,
            mend=f"give a folder with CASE_0000{file_ending}",
        )
    names = [case.id for case in cases]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"two images would be written as {doubled[0]!r}", where=folder, mend="rename one of them")
    return tuple(sorted(cases, key=lambda case: case.id))


def describe_images(folder: Path) -> dict[str, Any]:
    """Return what is known of a folder of images: its dataset.json, else that of the data set with such a folder."""
    folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    places = [folder, *([folder.parent] if folder.name.startswith("images") else [])]
    for file in (place / "dataset.json" for place in places):
        if file.is_file() or irregular(file):
            content = read_json(file)
            return content if isinstance(content, dict) else {}
    return {}


def _ending(folder: Path, wanted: str) -> str | None:
    shown = [file for file in folder.iterdir() if not file.name.startswith(".")]
    endings = {ending_of(file) for file in shown if file.is_file()}
    endings = endings - {None} or {ending_of(file) for file in shown if irregular(file)} - {None}
    if wanted in endings or not endings:
        return wanted if endings else None
    if len(endings) > 1:
        listed = ", ".join(sorted(endings))
        raise UserError(
            f"no {wanted} file, but several other formats: {listed}", where=folder, mend="give a folder with one format"
        )
    return endings.pop()


def _take_series(folder: Path, found: Found) -> None:
    for child in sorted(folder.iterdir()):
        try:
            is_series = child.is_dir() and dicom.is_series(child)
        except PermissionError:
            mend = "give yourself the right to read it, or remove it"
            found.complain("the folder may not be read", child, case=child.name, mend=mend)
            continue
        if is_series:
            _take(child.name, (child,), found)


def _take_files(folder: Path, ending: str, channels: int, found: Found) -> None:
    named = [file.name for file in sorted(folder.iterdir()) if file.name.endswith(ending)]
    hidden = [name for name in named if name.startswith(".") and not name.startswith(NO_IMAGES)]
    if hidden:
        names = short(", ".join(map(repr, hidden)))
        log.warning("%s: %d hidden file(s) are not segmented, rename them: %s", folder, len(hidden), names)
    if others := of_other_endings(folder, ending):
        mend = "segment them in a run of their own, or convert them; upper and lower case count"
        log.warning("%s: %s. To mend it: %s", folder, left_out(others, ending), mend)
    if _has_numbers({name for name in named if not name.startswith(".")}, ending, channels):
        for case, paths in list_images(folder, ending, channels, found).items():
            _take(case, paths, found)
        return
    for file in list_files(folder, ending, found):  # every file holds a whole case
        if ending_of(file) == ending:
            _take(_plain_name(file.name, ending), (file,), found)


def _has_numbers(names: set[str], ending: str, channels: int) -> bool:
    """Return whether names end with channel numbers: all do, or of several channels a second one lies by its first."""
    first = {name.removesuffix(f"_0000{ending}") for name in names if name.endswith(f"_0000{ending}")}
    if channels > 1 and any(f"{case}_0001{ending}" in names for case in first):
        return True
    return bool(first) and all(re.fullmatch(r".+_\d{4}" + re.escape(ending), name) for name in names)


def _plain_name(name: str, ending: str) -> str:
    name = name.removesuffix(ending)
    return name[:-5] if re.fullmatch(r".+_0000", name) else name


def _case(name: str, images: tuple[Path, ...]) -> Case:
    found = Found()
    _take(name, images, found)
    for problem in found.problems:
        raise problem.as_error()
    return found.cases[0]


def _take(name: str, images: tuple[Path, ...], found: Found) -> None:
    """Take a case, or note that its name is impossible."""
    if safe_name(name):
        found.cases.append(Case(name, images, None))
        return
    found.complain(name_fault(name), images[0], case=name, mend="rename it")


def _failures(found: Found, ending: str) -> dict[str, UserError]:
    """Return the first problem of every case that has one."""
    failures: dict[str, UserError] = {}
    for problem in found.problems:
        name = Path(problem.file).name
        case = problem.case or re.sub(r"(?<=.)_\d{4}$", "", name.removesuffix(ending))
        failures.setdefault(case if safe_name(case) else short(repr(case)[1:-1]), problem.as_error())
    return failures
