"""Gzip streams, whole and checked; by isal where it is installed (two times faster), else by the standard library."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from autoseg.errors import UserError
from autoseg.machine import available_memory

MAGIC = b"\x1f\x8b"
BROKEN = "the gzip stream is {}: the file is incomplete or damaged"
MEND = "copy or download the file again"
GZIP = 31  # what zlib calls the format of gzip
SPARE_BYTES = 2**20  # that may follow the voxels
SMALL_BYTES = 2**24  # for which nobody asks whether there is memory: that takes longer than to inflate so few
DENSEST = 1032  # bytes that one byte of a gzip stream can hold, by its format; a header that says more lies


@cache
def _codec() -> tuple[ModuleType, int]:
    """Return module and level for compression: low levels cost little size on label maps."""
    try:
        from isal import igzip
    except ImportError:
        return gzip, 3
    return igzip, 2


@cache
def _inflater() -> Callable[..., object]:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.decompressobj
    return isal_zlib.decompressobj


def inflate(content: bytes, path: Path, limit: int) -> bytes:
    """Return the decompressed content, of which the file says that it has at most `limit` bytes.

    A truncated or damaged stream, and one that holds more than a little beyond `limit`, is a UserError that names the
    file; no more than that is ever decompressed, and nothing of a stream that the memory cannot hold.
    """
    if SMALL_BYTES < limit <= DENSEST * len(content) and available_memory() < limit:
        raise _too_large(limit, path)
    limit = min(limit + SPARE_BYTES, 2**62)
    parts, size = [], 0
    while content.startswith(MAGIC):
        stream = _inflater()(wbits=GZIP)
        try:
            parts.append(stream.decompress(content, limit - size + 1))
        except MemoryError:  # there is a limit that available_memory does not see
            raise _too_large(limit, path) from None
        except Exception:  # isal has an exception class of its own
            raise UserError(BROKEN.format("not readable"), where=path, mend=MEND) from None
        size += len(parts[-1])
        if size > limit:
            raise UserError(
                f"the gzip stream holds more than its header declares ({limit - SPARE_BYTES} bytes)",
                where=path,
                mend="do not use this file, or write it again",
            )
        if not stream.eof:
            raise UserError(BROKEN.format("truncated"), where=path, mend=MEND)
        content = stream.unused_data  # a gzip file may have several members, and zeros at its end
    if content.strip(b"\0"):
        raise UserError(BROKEN.format("followed by other data"), where=path, mend=MEND)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(size: int, path: Path) -> UserError:
    return UserError(
        f"the image takes {size / 2**30:.1f} GiB of memory, more than is free",
        where=path,
        mend="run it where there is more memory, with fewer workers, or crop the image",
    )


def inflate_start(path: Path, size: int) -> bytes:
    """Return the first `size` decompressed bytes of a file, which need not be compressed."""
    with path.open("rb") as file:
        content = file.read(size + 8192)
    if not content:
        raise UserError("the file is empty", where=path, mend=MEND)
    if not content.startswith(MAGIC):
        return content[:size]
    try:
        return zlib.decompressobj(wbits=31).decompress(content, size)
    except zlib.error:
        raise UserError(BROKEN.format("not readable"), where=path, mend=MEND) from None


def deflate(content: bytes) -> bytes:
    """Return the content as a gzip stream; equal contents give equal streams."""
    codec, level = _codec()
    return codec.compress(content, level, mtime=0)
