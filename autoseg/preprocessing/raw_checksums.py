"""What raw cases are, by the content of their files: copies, and files whose times changed, are what they were.

A file is read for its checksum when it is first met, and again only when its size or times are other ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from autoseg.errors import UserError
from autoseg.machine import available_cores
from autoseg.plans import Frozen, parse
from autoseg.raw import Case, Dataset
from autoseg.storage import content_hash, file_hash, read_json, write_json
from autoseg.watching import watched
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
FileState = tuple[int, int, int, str]  # bytes, times of content and of file in ns, SHA-256
UNREADABLE: FileState = (0, 0, 0, "")  # whoever reads such a file tells why it cannot be read
Taken = tuple[dict[str, FileState], ...]  # per image and label map: its file, or those of its folder, by name


class RawChecksums:
    """Checksums of the raw files of a data set, beside its fingerprint."""

    def __init__(self, dataset: Dataset, file: Path, known: Mapping[str, FileState]):
        self.folder, self.labels, self.channels = dataset.folder, dataset.labels, len(dataset.channel_names)
        self.file, self.known, self._changed = file, dict(known), False

    @classmethod
    def of(cls, workspace: Workspace, dataset: Dataset, *, restart: bool = False) -> RawChecksums:
        """Return what is known of a data set, nothing to `restart`; a damaged file is told and made anew."""
        file = workspace.preprocessed_folder(dataset.name) / CHECKSUMS_FILE
        if restart or not file.is_file():
            return cls(dataset, file, {})
        try:
            return cls(dataset, file, parse(_Known, read_json(file), file).files)
        except UserError as error:
            log.warning("the checksums of the raw files are taken anew: %s: %s", error.where or file, error.what)
            return cls(dataset, file, {})

    def take(self, case: Case) -> Taken:
        """Return the states of the files of a case; what is known is not read."""
        return tuple({self._name(path): self._state(path) for path in files} for files in _files(case))

    def identity(self, case: Case, taken: Taken) -> str:
        """Return the identity of a case whose files are in such states: their names, contents, and how they are read.

        Names are those of the files alone, so that a data set may move.
        """
        contents = [[(Path(name).name, state[-1]) for name, state in files.items()] for files in taken]
        return content_hash("decoded", 3, case.id, case.label is not None, contents, self.labels, self.channels)

    def identities(self, cases: Iterable[Case]) -> dict[str, str]:
        """Return the identities of cases as their files are now, by id; files are read by threads, which is told."""
        cases = list(cases)
        new = sum(self._known_state(path) is None for case in cases for files in _files(case) for path in files)
        if new:
            log.info("reading %d raw file(s) whose size or times are new, to see whether their content is", new)
        with ThreadPoolExecutor(available_cores()) as readers:  # who compute checksums, without the interpreter's lock
            states = list(readers.map(self._take_watched, cases))
        for taken in states:
            self.note(taken)
        return {case.id: self.identity(case, taken) for case, taken in zip(cases, states, strict=True)}

    def note(self, taken: Taken) -> None:
        """Keep the states of files, but of those that could not be read."""
        for files in taken:
            fresh = {name: state for name, state in files.items() if state not in (UNREADABLE, self.known.get(name))}
            self.known.update(fresh)
            self._changed |= bool(fresh)

    def forget_others(self, cases: Iterable[Case]) -> None:
        """Keep the states of the files of `cases` alone."""
        names = {self._name(path) for case in cases for files in _files(case) for path in files}
        self._changed |= bool(self.known.keys() - names)
        self.known = {name: state for name, state in self.known.items() if name in names}

    def write(self) -> None:
        """Write the file if anything is new; where that cannot be written, files are read again next time."""
        if self._changed:
            with contextlib.suppress(OSError, UserError):
                write_json(self.file, _Known(files=self.known).model_dump(mode="json"), sealed=True)
            self._changed = False

    def _take_watched(self, case: Case) -> Taken:
        with watched(f"case {case.id}, checksums", kind="checksums"):
            return self.take(case)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def _known_state(self, path: Path) -> FileState | None:
        """Return what is known of a file, if it still has its size and times."""
        known = self.known.get(self._name(path))
        try:
            return known if known is not None and known[:-1] == _stamp(path) else None
        except OSError:
            return None

    def _state(self, path: Path) -> FileState:
        try:
            stamp = _stamp(path)  # before it is read: a later change has another one
            return self._known_state(path) or (*stamp, file_hash(path))
        except (OSError, UserError):
            return UNREADABLE


def _stamp(path: Path) -> tuple[int, int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _files(case: Case) -> list[list[Path]]:
    """Return the file of every image and of the label map of a case, or those in the folder of a DICOM series."""
    return [_inside(path) for path in (*case.images, case.label) if path is not None]


def _inside(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        if path.is_dir():  # hidden files, which file managers leave, are not read
            return [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    return [path]


class _Known(Frozen):
    format: Literal[1] = 1
    files: dict[str, FileState]  # by name: relative to the data set's folder, or whole where they are elsewhere
