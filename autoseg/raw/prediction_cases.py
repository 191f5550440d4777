"""What a folder of new images holds."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw import dicom
from autoseg.raw.dataset import Case, safe_name
from autoseg.raw.folders import Found, list_images
from autoseg.raw.images import ending_of
from autoseg.raw.problems import short
from autoseg.storage import LEFTOVERS

NO_IMAGES = ("._", *LEFTOVERS)  # what macOS writes beside a file, and what killed commands were writing

log = logging.getLogger(__name__)


def list_prediction_cases(folder: Path, *, channels: int, file_ending: str) -> tuple[Case, ...]:
    """Return the cases of a folder, sorted by name; a single image file or a DICOM series folder is one case.

    Taken are CASE_0000.ext (and _0001, ...), plain CASE.ext where one file holds all channels, and sub-folders with one
    DICOM series each. Files of `file_ending` come first; without any, the other supported format that is there.
    """
    folder = Path(folder)
    if folder.is_file() and ending_of(folder):
        return (_case(_plain_name(folder, ending_of(folder)), (folder,)),)
    if not folder.is_dir():
        raise UserError("the folder does not exist", where=folder, mend="correct the path")
    if dicom.is_series(folder):
        return (_case(folder.resolve().name, (folder,)),)
    series = [child for child in sorted(folder.iterdir()) if child.is_dir() and dicom.is_series(child)]
    ending = _ending(folder, file_ending)
    cases = [_case(child.name, (child,)) for child in series]
    if ending is not None:
        cases += _from_files(folder, ending, channels)
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


def _ending(folder: Path, wanted: str) -> str | None:
    endings = {ending_of(file) for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    endings.discard(None)
    if wanted in endings or not endings:
        return wanted if endings else None
    if len(endings) > 1:
        listed = ", ".join(sorted(endings))
        raise UserError(
            f"no {wanted} file, but several other formats: {listed}", where=folder, mend="give a folder with one format"
        )
    return endings.pop()


def _from_files(folder: Path, ending: str, channels: int) -> list[Case]:
    files = [file for file in sorted(folder.iterdir()) if file.name.endswith(ending)]
    hidden = [file.name for file in files if file.name.startswith(".") and not file.name.startswith(NO_IMAGES)]
    if hidden:
        names = short(", ".join(map(repr, hidden)))
        log.warning("%s: %d hidden file(s) are not segmented, rename them: %s", folder, len(hidden), names)
    files = [file for file in files if not file.name.startswith(".")]
    files = [file for file in files if file.is_file() and ending_of(file) == ending]
    numbered = re.compile(r".+_\d{4}" + re.escape(ending))
    has_first = any(file.name.endswith(f"_0000{ending}") for file in files)
    if has_first and all(numbered.fullmatch(file.name) for file in files):
        found = Found()
        images = list_images(folder, ending, channels, found)
        if found.problems:
            raise found.problems[0].as_error()
        return [_case(case, paths) for case, paths in images.items()]
    # Names without channel numbers: every file holds a whole case.
    return [_case(_plain_name(file, ending), (file,)) for file in files]


def _plain_name(file: Path, ending: str) -> str:
    name = file.name.removesuffix(ending)
    return name[:-5] if re.fullmatch(r".+_0000", name) else name


def _case(name: str, images: tuple[Path, ...]) -> Case:
    if not safe_name(name):
        raise UserError(f"the case name {name!r} cannot become a file name", where=images[0], mend="rename it")
    return Case(name, images, None)
