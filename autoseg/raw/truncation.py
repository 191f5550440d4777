"""Find cut JPG and TIFF files, which ITK fills up without an error."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from autoseg.errors import UserError
from autoseg.raw.compression import MEND
from autoseg.raw.tiff_pages import TIFFS, Page, pages, values_of

JPEGS = (".jpg", ".jpeg")
END_OF_JPEG = b"\xff\xd9"  # never occurs within the coded picture
OFFSETS, COUNTS = (273, 324), (279, 325)  # TIFF tags of strips and tiles


def refuse_truncated(path: Path) -> None:
    """Raise UserError if a JPG lacks its end, or a TIFF refers to bytes behind the end of the file."""
    name = path.name.lower()
    if not name.endswith((*JPEGS, *TIFFS)):
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        if name.endswith(JPEGS):
            file.seek(max(0, size - 4096))
            whole = END_OF_JPEG in file.read()
        else:
            try:
                whole = _last_byte_of_tiff(file) <= size
            except (struct.error, KeyError, OSError, OverflowError, ValueError):  # offsets and types that cannot be
                whole = False
    if not whole:
        raise UserError("the file is truncated", where=path, mend=MEND)


def _last_byte_of_tiff(file: BinaryIO) -> int:
    """Return the end of the last strip or tile of a TIFF without a circle; struct.error if a directory is missing."""
    return max((_last_byte(file, page) for page in pages(file)), default=0)


def _last_byte(file: BinaryIO, page: Page) -> int:
    values = values_of(file, page, OFFSETS + COUNTS)
    ends = (
        offset + length
        for offsets, counts in zip(OFFSETS, COUNTS, strict=True)
        for offset, length in zip(values.get(offsets, ()), values.get(counts, ()), strict=False)
    )
    return max(ends, default=0)
