"""The pages of a TIFF, which ITK reads as the slices of one volume: they come to an end, and are all of one kind."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg.errors import UserError
from autoseg.raw.compression import MEND

TIFFS = (".tif", ".tiff")
LARGEST_DIRECTORY = 2**28  # bytes that the list of a TIFF's strips or tiles may take
CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the TIFF types that whole numbers are written in
USE = 254  # TIFF tag: what a page is for
NO_SLICE = 1 | 4  # bits of it: a small copy of another page, a mask; ITK leaves these out
KIND = {256: "width", 257: "height", 258: "bits per sample", 277: "samples per pixel", 339: "sample format"}
KIND |= {262: "photometric interpretation"}
DEFAULTS = {258: (1,), 277: (1,), 339: (1,)}  # by the standard
UNREADABLE = (struct.error, KeyError, OSError, OverflowError, ValueError)  # is told by who reads the file


@dataclass(frozen=True)
class Page:
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


def refuse_odd_pages(path: Path) -> None:
    """Raise UserError if the pages of a TIFF refer to each other in a circle, which ITK follows for ever, or differ.

    ITK reads every page as it found the first one: one of another size is cut, one of another depth gives noise.
    """
    if not path.name.lower().endswith(TIFFS):
        return
    found: dict[int, Page] = {}
    with path.open("rb") as file:
        with suppress(*UNREADABLE):
            for page in pages(file):
                if page.position in found:
                    raise UserError("the pages of the file refer to each other in a circle", where=path, mend=MEND)
                found[page.position] = page
        with suppress(*UNREADABLE):
            _refuse_unlike(file, found.values(), path)


def _refuse_unlike(file: BinaryIO, found: Iterable[Page], path: Path) -> None:
    first = None
    for number, page in enumerate(found, 1):
        values = DEFAULTS | values_of(file, page, (USE, *KIND))
        if any(use & NO_SLICE for use in values.pop(USE, ())):
            continue
        first = first or values
        tag = next((tag for tag in KIND if values.get(tag) != first.get(tag)), None)
        if tag is not None:
            raise UserError(
                f"page {number} has {KIND[tag]} {_shown(values.get(tag))}, the first one {_shown(first.get(tag))}; the "
                "pages of a volume are all of one kind",
                where=path,
                mend="write the slices of one volume, or one picture, into a file of its own",
            )


def _shown(values: tuple[int, ...] | None) -> str:
    return "none" if values is None else ", ".join(map(str, values[:4]))


def pages(file: BinaryIO) -> Iterator[Page]:
    """Yield the pages of a TIFF or BigTIFF, for ever where they go in a circle; struct.error if one is missing."""
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    word, count, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    position = struct.unpack_from(order + word, start, 8 if big else 4)[0]
    while position:
        (number,) = _read(file, position, order + count)
        page = Page(position, position + struct.calcsize(count), number, order, word, size)
        yield page
        (position,) = _read(file, page.end, order + word)


def values_of(file: BinaryIO, page: Page, tags: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """Return the whole numbers that a page has for those of `tags` that it has."""
    file.seek(page.entries)
    content = file.read(min(page.number * page.size, LARGEST_DIRECTORY))
    values = {}
    for place in range(0, page.number * page.size, page.size):
        tag, kind, count = struct.unpack_from(f"{page.order}HH{page.word}", content, place)
        if tag in tags:
            code = f"{page.order}{count}{CODES[kind]}"
            field = place + page.size - struct.calcsize(page.word)
            inline = struct.calcsize(code) <= struct.calcsize(page.word)
            where = page.entries + field if inline else struct.unpack_from(page.order + page.word, content, field)[0]
            values[tag] = _read(file, where, code)
    return values


def _read(file: BinaryIO, position: int, code: str) -> tuple[int, ...]:
    size = struct.calcsize(code)
    if size > LARGEST_DIRECTORY:
        raise ValueError(f"{size} bytes of offsets")
    file.seek(position)
    return struct.unpack(code, file.read(size))
