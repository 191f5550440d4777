"""What raw cases are, by the content of their files: copies, and files whose times changed, are what they were.

A file is read for its checksum when it is first met, and again only when its size or time is another one.
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
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
FileState = tuple[int, int, str]  # bytes, modification time in ns, SHA-256
UNREADABLE: FileState = (0, 0, "")  # whoever reads such a file tells why it cannot be read


class RawChecksums:
    """Checksums of the raw files of a data set, beside its fingerprint."""

    def __init__(self, dataset: Dataset, file: Path, known: Mapping[str, FileState]):
        self.folder, self.labels, self.channels = dataset.folder, dataset.labels, len(dataset.channel_names)
        self.file, self.known, self._changed = file, dict(known), False

    @classmethod
    def of(cls, workspace: Workspace, dataset: Dataset) -> RawChecksums:
        """Return what is known of a data set; a damaged file of checksums is told and made anew."""
        file = workspace.preprocessed_folder(dataset.name) / CHECKSUMS_FILE
        try:
            return cls(dataset, file, parse(_Known, read_json(file), file).files if file.is_file() else {})
        except UserError as error:
            log.warning("the checksums of the raw files are taken anew: %s: %s", error.where or file, error.what)
            return cls(dataset, file, {})

    def take(self, case: Case) -> dict[str, FileState]:
        """Return the state of every file of a case, by name; what is known is not read."""
        return {self._name(path): self._state(path) for path in _files(case)}

    def identity(self, case: Case, taken: Mapping[str, FileState]) -> str:
        """Return the identity of a case whose files are in such a state: their names, contents, and how they are read.

        Names are those of the files alone, so that a data set may move.
        """
        contents = [(Path(name).name, checksum) for name, (*_, checksum) in taken.items()]
        return content_hash("decoded", 3, case.id, case.label is not None, contents, self.labels, self.channels)

    def identities(self, cases: Iterable[Case]) -> dict[str, str]:
        """Return the identities of cases as their files are now, by id; files are read by threads."""
        cases = list(cases)
        with ThreadPoolExecutor(available_cores()) as readers:  # who compute checksums, without the interpreter's lock
            states = list(readers.map(self.take, cases))
        for taken in states:
            self.note(taken)
        return {case.id: self.identity(case, taken) for case, taken in zip(cases, states, strict=True)}

    def note(self, taken: Mapping[str, FileState]) -> None:
        """Keep the states of files, but of those that could not be read."""
        fresh = {name: state for name, state in taken.items() if state != UNREADABLE and self.known.get(name) != state}
        self.known.update(fresh)
        self._changed |= bool(fresh)

    def write(self) -> None:
        """Write the file if anything is new; where nothing can be written, files are read again next time."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_json(self.file, _Known(files=self.known).model_dump(mode="json"), sealed=True)
            self._changed = False

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def _state(self, path: Path) -> FileState:
        try:
            state = os.stat(path)
            known = self.known.get(self._name(path))
            if known is not None and known[:2] == (state.st_size, state.st_mtime_ns):
                return known
            return state.st_size, state.st_mtime_ns, file_hash(path)
        except (OSError, UserError):
            return UNREADABLE


def _files(case: Case) -> list[Path]:
    """Return the files of a case, those in the folder of a DICOM series too."""
    files: list[Path] = []
    for path in (*case.images, case.label):
        if path is not None:
            inside = ()
            with contextlib.suppress(OSError):
                inside = sorted(path.iterdir()) if path.is_dir() else ()
            files += inside or (path,)
    return files


class _Known(Frozen):
    format: Literal[1] = 1
    files: dict[str, FileState]  # by name: relative to the data set's folder, or whole where they are elsewhere
