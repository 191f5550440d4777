"""What a preprocessed case is: arrays and the geometry needed to bring predictions back to the original grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.plans import Frozen, parse
from autoseg.storage import file_hash, read_json


class CaseProperties(Frozen):
    """How a case came from its raw grid to the preprocessed one. All axes are transposed ones (see Plans)."""

    spacing: tuple[float, float, float]  # mm, of the raw case
    shape_before_crop: tuple[int, int, int]
    crop_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (first, one past the last) per axis
    shape_after_crop: tuple[int, int, int]
    shape_resampled: tuple[int, int, int]


@dataclass
class Preprocessed:
    """A normalised, resampled case.

    `data` is float32 (C, Z, Y, X); `label` int16 (Z, Y, X) with internal values and -1 outside of the non-zero
    region, or None. With `labelled` False the label map only tells inside (0) from outside (-1).
    """

    data: np.ndarray
    label: np.ndarray | None
    properties: CaseProperties
    labelled: bool = True


class StoredFile(Frozen):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def is_intact(path: Path, stored: StoredFile) -> bool:
    """Return whether a file has its size and, which is looked at after it, its checksum."""
    try:
        return path.stat().st_size == stored.size and file_hash(path) == stored.sha256
    except OSError:
        return False


def read_record(path: Path) -> StoredFile:
    """Return size and checksum of a file that has them beside it."""
    beside = path.with_suffix(".json")
    return parse(StoredFile, read_json(beside), beside)


class CaseRecord(Frozen):
    """What a store knows about a case without opening its arrays."""

    id: str
    input_hash: str  # of the raw files and the settings that the case was made from
    properties: CaseProperties
    channels: int
    bytes_in_memory: int  # of image and label, decompressed
    labelled: bool
    annotated: tuple[int, ...] | None  # internal values that were annotated; None: all
    location_counts: dict[int, int]
    files: dict[str, StoredFile]


class Index(Frozen):
    """What index.json says."""

    format: Literal[1] = 1
    cases: dict[str, CaseRecord]
