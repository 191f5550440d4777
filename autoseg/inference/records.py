"""What a prediction folder holds already: which outputs were finished, by which model, from which inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.storage import content_hash, file_hash, file_stamp, read_json, write_json

log = logging.getLogger(__name__)

RECORD_FILE = "autoseg_predictions.json"


@dataclass(frozen=True)
class Inputs:
    """The image files of a case, with names, sizes and times as they were at one moment: before they are read."""

    paths: tuple[Path, ...]
    stamps: tuple[list[Any] | None, ...]  # of every path; of a DICOM folder, those of its files

    @classmethod
    def seen(cls, paths: Sequence[Path]) -> Inputs:
        """Look at the files as they are now."""
        return cls(tuple(paths), tuple(_stamps(path) for path in paths))

    @property
    def flat(self) -> list[Any]:
        """Return the stamps of all files in a row."""
        return [stamp for stamps in self.stamps for stamp in stamps or [None]]

    def require_unchanged(self) -> None:
        """Raise UserError if a file is not what it was when it was seen."""
        for path, before in zip(self.paths, self.stamps, strict=True):
            if before is None or before != _stamps(path):
                raise UserError(
                    "the image changed while it was segmented, so its prediction is not kept",
                    where=path,
                    mend="repeat the command when nothing writes to the folder any more",
                )


def _stamps(path: Path) -> list[Any] | None:
    """Return name, size and time of a file or of all files of a folder; None if that cannot be told: it is gone."""
    try:
        files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
        return [file_stamp(file) for file in files]
    except OSError:
        return None


class Record:
    """The finished cases of an output folder; written after every case, so that an interrupted run goes on."""

    def __init__(self, output: Path, identity: str):
        self.path = output / RECORD_FILE
        self.identity = identity
        self.cases: dict[str, dict[str, Any]] = self._read()

    def is_finished(self, case: str, paths: Sequence[Path]) -> bool:
        """Return whether this model wrote all outputs of the case from the files as they are now; they are read."""
        entry = self.cases.get(case)
        if entry is None or entry["key"] != self._key(Inputs.seen(paths)):
            return False
        damaged = [name for name, stamp in entry["outputs"].items() if not _is_intact(self.path.parent / name, stamp)]
        if damaged:
            log.warning("case %s is predicted again: %s is missing or not as it was written", case, ", ".join(damaged))
        return not damaged

    def finish(self, case: str, inputs: Inputs, outputs: Sequence[Path]) -> None:
        """Note that the outputs of a case are complete, made from its files as they were seen before reading."""
        stamps = {output.name: [output.stat().st_size, file_hash(output)] for output in outputs}
        self.cases[case] = {"key": self._key(inputs), "outputs": stamps}
        write_json(self.path, {"format": 2, "cases": self.cases}, sealed=True)

    def _key(self, inputs: Inputs) -> str:
        return content_hash(self.identity, inputs.flat)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        try:
            cases = read_json(self.path)["cases"]
            return {str(case): {"key": str(e["key"]), "outputs": dict(e["outputs"])} for case, e in cases.items()}
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            log.warning("%s is not readable: every case is predicted again", self.path)
            return {}


def _is_intact(path: Path, stamp: Any) -> bool:
    """Return whether a file has its size and, which is looked at after it, its checksum."""
    try:
        return isinstance(stamp, list) and path.stat().st_size == stamp[0] and file_hash(path) == stamp[1]
    except OSError:
        return False
