"""Find cut JPG, BMP and TIFF files, which ITK fills up without an error."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from autoseg.errors import UserError
from autoseg.raw.compression import MEND

JPEGS = (".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")
BMP = ".bmp"
END_OF_JPEG = b"\xff\xd9"  # never occurs within the coded picture
LARGEST_DIRECTORY = 2**28  # bytes that the list of a TIFF's strips or tiles may take
BYTES_OF_TYPE = {1: 1, 3: 2, 4: 4, 16: 8}  # the TIFF types of which offsets and counts are made
OFFSETS, COUNTS = (273, 324), (279, 325)  # TIFF tags of strips and tiles


def refuse_truncated(path: Path) -> None:
    """Raise UserError if a JPG lacks its end, or a BMP or TIFF refers to bytes behind the end of the file."""
    name = path.name.lower()
    if not name.endswith((*JPEGS, BMP, *TIFFS)):
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        if name.endswith(JPEGS):
            file.seek(max(0, size - 4096))
            whole = END_OF_JPEG in file.read()
        elif name.endswith(BMP):
            start = file.read(6)
            whole = len(start) == 6 and struct.unpack("<I", start[2:])[0] <= size  # the size that the header tells
        else:
            try:
                whole = _last_byte_of_tiff(file) <= size
            except (struct.error, KeyError, OSError, OverflowError, ValueError):  # offsets and types that cannot be
                whole = False
    if not whole:
        raise UserError("the file is truncated", where=path, mend=MEND)


def _last_byte_of_tiff(file: BinaryIO) -> int:
    """Return the end of the last strip or tile of a TIFF or BigTIFF; struct.error if a directory is missing."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    word, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    position = struct.unpack_from(order + word, start, 8 if big else 4)[0]
    end, seen = 0, set()
    while position and position not in seen:
        seen.add(position)
        (number,) = _read(file, position, order + count)
        directory = position + struct.calcsize(count)
        file.seek(directory)
        content = file.read(min(number * entry, LARGEST_DIRECTORY))
        places: dict[bool, tuple[int, ...]] = {}
        for place in range(0, number * entry, entry):
            tag, kind, values = struct.unpack_from(f"{order}HH{word}", content, place)
            if tag in OFFSETS + COUNTS:
                code = f"{order}{values}{dict(zip((1, 2, 4, 8), 'BHIQ', strict=True))[BYTES_OF_TYPE[kind]]}"
                field = place + entry - struct.calcsize(word)
                inline = struct.calcsize(code) <= struct.calcsize(word)
                where = directory + field if inline else struct.unpack_from(order + word, content, field)[0]
                places[tag in OFFSETS] = _read(file, where, code)
        pairs = zip(places.get(True, ()), places.get(False, ()), strict=False)
        end = max([end, *(offset + length for offset, length in pairs)])
        (position,) = _read(file, directory + number * entry, order + word)
    return end


def _read(file: BinaryIO, position: int, code: str) -> tuple[int, ...]:
    size = struct.calcsize(code)
    if size > LARGEST_DIRECTORY:
        raise ValueError(f"{size} bytes of offsets")
    file.seek(position)
    return struct.unpack(code, file.read(size))
