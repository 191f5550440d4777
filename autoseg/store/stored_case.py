"""A case in a store: parts of its arrays, decompressed when asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import UserError
from autoseg.store.arrays import damaged, open_array, read_array, slice_array
from autoseg.store.layout import IMAGE, LABEL, LOCATIONS, case_file, previous_stage_file
from autoseg.store.records import CaseProperties, CaseRecord, StoredFile, is_intact, read_record

HANDLES_PER_THREAD = 32

Slices = tuple[slice, slice, slice]


class ArrayReader:
    """Reads parts of stored arrays, from decompressed copies in memory if `keep`, else through handles per thread.

    A file is held against its checksum once, before anything is taken from it.
    """

    def __init__(self, keep: bool):
        self.keep = keep
        self._arrays: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._intact: set[Path] = set()

    def check(self, path: Path, stored: StoredFile | None) -> None:
        """Raise UserError if the file is not the one that was written; None is a file without a checksum."""
        if stored is None or path in self._intact:
            return
        if not is_intact(path, stored):
            raise damaged(path, "it does not match its checksum")
        self._intact.add(path)

    def read(self, path: Path, slices: Any, stored: StoredFile | None = None) -> np.ndarray:
        """Return a part of the array stored at `path`; with `keep` it may be a view of the kept array."""
        self.check(path, stored)
        if not self.keep:
            return slice_array(self._handle(path), slices, path)
        if path not in self._arrays:
            array = read_array(path)
            with self._lock:
                self._arrays.setdefault(path, array)
        return self._arrays[path][slices]

    def _handle(self, path: Path) -> Any:
        handles: OrderedDict[Path, Any] = self._local.__dict__.setdefault("handles", OrderedDict())
        if path not in handles:
            handles[path] = open_array(path)
            if len(handles) > HANDLES_PER_THREAD:
                handles.popitem(last=False)
        handles.move_to_end(path)
        return handles[path]


class StoredCase:
    """A handle on one case; thread-safe. Slices are three slices (z, y, x) within the case, None means all of it."""

    def __init__(self, record: CaseRecord, folder: Path, reader: ArrayReader):
        self.record = record
        self._folder = folder
        self._reader = reader
        self._previous: dict[Path, StoredFile] = {}  # checksums of label maps of previous stages

    @property
    def id(self) -> str:
        """Return the id of the case."""
        return self.record.id

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the preprocessed shape (Z, Y, X)."""
        return self.record.properties.shape_resampled

    @property
    def properties(self) -> CaseProperties:
        """Return the geometry of the case."""
        return self.record.properties

    @property
    def labelled(self) -> bool:
        """Return whether the case has a label map; otherwise `label` only tells inside (0) from outside (-1)."""
        return self.record.labelled

    @property
    def annotated(self) -> tuple[int, ...] | None:
        """Return the internal values that were annotated; None means all."""
        return self.record.annotated

    def image(self, slices: Slices | None = None) -> np.ndarray:
        """Return (a part of) the image as a new float32 array (C, *S)."""
        part = (slice(None), *slices) if slices is not None else ...
        path = case_file(self._folder, self.id, IMAGE)
        values = self._reader.read(path, part, self.record.files.get(path.name))
        return values.astype(np.float32, copy=self._reader.keep)

    def label(self, slices: Slices | None = None) -> np.ndarray:
        """Return (a part of) the label map as a new int16 array (*S) of internal values, -1 outside."""
        path = case_file(self._folder, self.id, LABEL)
        return self._label_map(path, slices, self.record.files.get(path.name))

    def previous_stage(self, slices: Slices | None = None, *, name: str) -> np.ndarray:
        """Return (a part of) the label map that the previous stage `name` predicted, as int16."""
        path = previous_stage_file(self._folder, name, self.id)
        if not path.is_file():
            raise UserError(
                f"case {self.id} has no prediction of the previous stage {name!r}",
                where=path,
                mend="train every fold of the previous stage first: its validation predicts the training cases",
            )
        if path not in self._previous:
            self._previous[path] = read_record(path)
        return self._label_map(path, slices, self._previous[path])

    @cached_property
    def locations(self) -> dict[int, np.ndarray]:
        """Return sampled voxel coordinates (N, 3) int32 per class, see `preprocessing.class_locations`."""
        path = case_file(self._folder, self.id, LOCATIONS)
        self._reader.check(path, self.record.files.get(path.name))
        try:
            coordinates = np.load(path, allow_pickle=False).astype(np.int32)
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, error) from None
        counts = self.record.location_counts
        ends = np.cumsum(list(counts.values()), dtype=np.int64)
        if coordinates.shape != (int(ends[-1]) if len(ends) else 0, 3):
            raise damaged(path, f"unexpected shape {coordinates.shape}")
        return dict(zip(counts, np.split(coordinates, ends[:-1]), strict=True)) if counts else {}

    def _label_map(self, path: Path, slices: Slices | None, stored: StoredFile | None) -> np.ndarray:
        values = self._reader.read(path, slices if slices is not None else ..., stored)
        return values.astype(np.int16, copy=self._reader.keep)
