"""Find cut JPG and TIFF files, which ITK fills up without an error, and TIFFs whose pages have no end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg.errors import UserError
from autoseg.raw.compression import MEND

JPEGS = (".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")
END_OF_JPEG = b"\xff\xd9"  # never occurs within the coded picture
LARGEST_DIRECTORY = 2**28  # bytes that the list of a TIFF's strips or tiles may take
BYTES_OF_TYPE = {1: 1, 3: 2, 4: 4, 16: 8}  # the TIFF types of which offsets and counts are made
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


def refuse_endless_pages(path: Path) -> None:
    """Raise UserError if the pages of a TIFF refer to each other in a circle, which ITK follows for ever."""
    if not path.name.lower().endswith(TIFFS):
        return
    with path.open("rb") as file, suppress(struct.error, OSError, OverflowError, ValueError):  # told by who reads it
        seen = set()
        for page in _pages(file):
            if page.position in seen:
                raise UserError("the pages of the file refer to each other in a circle", where=path, mend=MEND)
            seen.add(page.position)


@dataclass(frozen=True)
class _Page:
    """The directory of one page: where it lies, its entries, and how numbers are written."""

    position: int
    entries: int  # where the first one lies
    number: int
    order: str
    word: str
    size: int  # bytes of an entry

    @property
    def end(self) -> int:
        """Where the place of the next page stands."""
        return self.entries + self.number * self.size


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Yield the pages of a TIFF or BigTIFF, for ever where they go in a circle; struct.error if one is missing."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    word, count, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    position = struct.unpack_from(order + word, start, 8 if big else 4)[0]
    while position:
        (number,) = _read(file, position, order + count)
        page = _Page(position, position + struct.calcsize(count), number, order, word, size)
        yield page
        (position,) = _read(file, page.end, order + word)


def _last_byte_of_tiff(file: BinaryIO) -> int:
    """Return the end of the last strip or tile of a TIFF without a circle; struct.error if a directory is missing."""
    return max((_last_byte(file, page) for page in _pages(file)), default=0)


def _last_byte(file: BinaryIO, page: _Page) -> int:
    file.seek(page.entries)
    content = file.read(min(page.number * page.size, LARGEST_DIRECTORY))
    places: dict[bool, tuple[int, ...]] = {}
    for place in range(0, page.number * page.size, page.size):
        tag, kind, values = struct.unpack_from(f"{page.order}HH{page.word}", content, place)
        if tag in OFFSETS + COUNTS:
            code = f"{page.order}{values}{dict(zip((1, 2, 4, 8), 'BHIQ', strict=True))[BYTES_OF_TYPE[kind]]}"
            field = place + page.size - struct.calcsize(page.word)
            inline = struct.calcsize(code) <= struct.calcsize(page.word)
            where = page.entries + field if inline else struct.unpack_from(page.order + page.word, content, field)[0]
            places[tag in OFFSETS] = _read(file, where, code)
    pairs = zip(places.get(True, ()), places.get(False, ()), strict=False)
    return max((offset + length for offset, length in pairs), default=0)


def _read(file: BinaryIO, position: int, code: str) -> tuple[int, ...]:
    size = struct.calcsize(code)
    if size > LARGEST_DIRECTORY:
        raise ValueError(f"{size} bytes of offsets")
    file.seek(position)
    return struct.unpack(code, file.read(size))
