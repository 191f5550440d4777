"""The preprocessed cases of one configuration on disk, read by patches from many threads (see `layout`)."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import UserError
from autoseg.plans import Frozen, parse
from autoseg.storage import read_json, write_bytes, write_json
from autoseg.store.arrays import compress, smallest_float, smallest_label
from autoseg.store.layout import CASES, IMAGE, INDEX_FILE, LABEL, LOCATIONS, case_file, previous_stage_file
from autoseg.store.records import CaseRecord, Index, Preprocessed, StoredFile, is_intact, read_record
from autoseg.store.stored_case import ArrayReader, StoredCase
from autoseg.workers import available_memory

log = logging.getLogger(__name__)

CACHE_SHARE = 0.25  # of the free memory that decompressed cases may take


class CaseStore:
    """The store in a folder. Reading is thread-safe; several processes may write different cases at once.

    `cache` True keeps every array decompressed in memory once it was read; None does so if all of them fit in a
    quarter of the free memory.
    """

    def __init__(self, folder: Path, *, cache: bool | None = None):
        self.folder = folder
        self._wanted_cache = cache
        self._lock = threading.RLock()
        self._opened: dict[str, StoredCase] = {}

    @property
    def cases(self) -> tuple[str, ...]:
        """Return the ids of all cases, sorted."""
        return tuple(sorted(self._records))

    @property
    def sealed(self) -> bool:
        """Return whether one index tells all cases, as after `seal`."""
        return (self.folder / INDEX_FILE).is_file() and not self._loose_records()

    def is_complete(self, case: str, input_hash: str) -> bool:
        """Return whether the case was made from these inputs and its files, which are read, have their checksums."""
        record = self._records.get(case)
        if record is None or record.input_hash != input_hash:
            return False
        damaged = [name for name, stored in record.files.items() if not is_intact(self.folder / CASES / name, stored)]
        if damaged:
            log.warning("case %s is preprocessed again: %s is missing or damaged", case, ", ".join(damaged))
        return not damaged

    def read(self, case: str) -> StoredCase:
        """Return a handle on a case; no array is read before it is asked for."""
        with self._lock:
            if case not in self._opened:
                if case not in self._records:
                    raise UserError(f"case {case} is not preprocessed", where=self.folder, mend="run preprocessing")
                self._opened[case] = StoredCase(self._records[case], self.folder, self._reader)
            return self._opened[case]

    def write(
        self,
        case: str,
        preprocessed: Preprocessed,
        locations: Mapping[int, np.ndarray],
        *,
        annotated: tuple[int, ...] | None = None,
        input_hash: str = "",
        patch_size: tuple[int, ...] | None = None,
    ) -> None:
        """Store a case. Blocks are shaped after `patch_size`, of two axes for the patches of a 2D network.

        Data are kept as float16 unless a magnitude exceeds 1024. Without a label map all voxels count as inside.
        """
        image = smallest_float(preprocessed.data)
        label = preprocessed.label
        label = np.zeros(image.shape[1:], dtype=np.int8) if label is None else smallest_label(label)
        patch = (1, *patch_size) if patch_size is not None and len(patch_size) == 2 else patch_size
        coordinates = np.concatenate([*locations.values(), np.empty((0, 3))])
        kind = np.uint16 if max(image.shape) <= 1 << 16 else np.int32
        contents = {
            IMAGE: compress(image, patch),
            LABEL: compress(label, patch),
            LOCATIONS: _npy(coordinates.astype(kind)),
        }
        paths = {suffix: case_file(self.folder, case, suffix) for suffix in contents}
        record = CaseRecord(
            id=case,
            input_hash=input_hash,
            properties=preprocessed.properties,
            channels=len(image),
            bytes_in_memory=image.nbytes + label.nbytes,
            labelled=preprocessed.labelled and preprocessed.label is not None,
            annotated=annotated,
            location_counts={key: len(found) for key, found in locations.items()},
            files={paths[suffix].name: _stored_file(content) for suffix, content in contents.items()},
        )
        for suffix, content in contents.items():
            write_bytes(paths[suffix], content)
        write_json(case_file(self.folder, case, "json"), record.model_dump(mode="json"), sealed=True)
        with self._lock:
            if "_records" in self.__dict__:  # a store that only writes need not know the other cases
                self._replace(self._records | {case: record})

    def seal(self, keep: Iterable[str] | None = None) -> None:
        """Write the records of all cases, or of those to keep, into one index, and delete the files of all others."""
        records = self._load()
        keep = set(records if keep is None else keep)
        kept = {case: record for case, record in sorted(records.items()) if case in keep}
        write_json(self.folder / INDEX_FILE, Index(cases=kept).model_dump(mode="json"), sealed=True)
        wanted = {name for record in kept.values() for name in record.files}
        for path in (self.folder / CASES).glob("*"):
            if path.name not in wanted:
                path.unlink()
        self._replace(kept)

    def discard(self, cases: Iterable[str]) -> None:
        """Forget cases that are about to be made anew, so that no crash in between can mix old files with new ones."""
        gone = set(cases) & set(self._records)
        if not gone:
            return
        kept = {case: record for case, record in self._load().items() if case not in gone}
        if (self.folder / INDEX_FILE).is_file():
            write_json(self.folder / INDEX_FILE, Index(cases=kept).model_dump(mode="json"), sealed=True)
        for case in gone:
            case_file(self.folder, case, "json").unlink(missing_ok=True)
        self._replace(kept)

    def drop_unreadable(self) -> None:
        """Delete an index and records that are damaged, with a warning: their cases are made anew."""
        self._replace(self._load(drop=True))

    def verify(self) -> tuple[str, ...]:
        """Read every file and return one message per file that is missing or does not match its checksum."""
        faults = []
        for record in self._records.values():
            for name, stored in record.files.items():
                path = self.folder / CASES / name
                if not path.is_file():
                    faults.append(f"case {record.id}: {path} is missing")
                elif not is_intact(path, stored):
                    faults.append(f"case {record.id}: {path} does not match its checksum")
        return tuple(faults)

    def add_previous_stage(self, case: str, label: np.ndarray, name: str) -> None:
        """Store the label map (Z, Y, X) that the previous stage `name` of a cascade predicted for a case."""
        stored = self.read(case)
        if label.shape != stored.shape:
            raise ValueError(f"case {case}: the previous stage has shape {label.shape}, the case {stored.shape}")
        content, path = compress(smallest_label(label)), previous_stage_file(self.folder, name, case)
        write_bytes(path, content)
        write_json(path.with_suffix(".json"), _stored_file(content).model_dump(), sealed=True)
        self._replace(self._records)

    def has_previous_stage(self, case: str, name: str) -> bool:
        """Return whether a label map of the previous stage `name` is stored for a case, undamaged."""
        path = previous_stage_file(self.folder, name, case)
        try:
            stored: StoredFile = read_record(path)
        except UserError:  # there is none, or it is damaged
            return False
        return is_intact(path, stored)

    @cached_property
    def _records(self) -> dict[str, CaseRecord]:
        return self._load()

    @cached_property
    def _reader(self) -> ArrayReader:
        if self._wanted_cache is not None:
            return ArrayReader(self._wanted_cache)
        total = sum(record.bytes_in_memory for record in self._records.values())
        return ArrayReader(total <= CACHE_SHARE * available_memory())

    def _load(self, *, drop: bool = False) -> dict[str, CaseRecord]:
        index = self.folder / INDEX_FILE
        records: dict[str, CaseRecord] = {}
        if index.is_file() and (found := _parsed(Index, index, drop=drop)) is not None:
            records |= found.cases
        for path in self._loose_records():
            if (record := _parsed(CaseRecord, path, drop=drop)) is not None:
                records[record.id] = record
        return records

    def _loose_records(self) -> list[Path]:
        found = (self.folder / CASES).glob("*.json")
        return [path for path in found if not path.name.startswith(".writing-")]

    def _replace(self, records: dict[str, CaseRecord]) -> None:
        with self._lock:
            self._records = records
            self._opened.clear()
            self.__dict__.pop("_reader", None)


def _stored_file(content: bytes) -> StoredFile:
    return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _parsed(kind: type[Frozen], path: Path, *, drop: bool) -> Any:
    """Return what a file says; with `drop` one that is damaged is deleted, and None returned."""
    try:
        return parse(kind, read_json(path), path)
    except UserError as error:
        if not drop or not os.access(path, os.R_OK):
            raise
        log.warning("%s: %s; its case(s) are preprocessed again", path, error.what)
        path.unlink()
        return None


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
