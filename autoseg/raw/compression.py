"""Gzip streams, whole and checked; by isal where it is installed (two times faster), else by the standard library."""

from __future__ import annotations

import gzip
import zlib
from functools import cache
from pathlib import Path
from types import ModuleType

from autoseg.errors import UserError

MAGIC = b"\x1f\x8b"
BROKEN = "the gzip stream is {}: the file is incomplete or damaged"
MEND = "copy or download the file again"


@cache
def _codec() -> tuple[ModuleType, int]:
    """Return module and level for compression: low levels cost little size on label maps."""
    try:
        from isal import igzip
    except ImportError:
        return gzip, 3
    return igzip, 2


def inflate(content: bytes, path: Path) -> bytes:
    """Return the decompressed content; a truncated or damaged stream is a UserError that names the file."""
    try:
        return _codec()[0].decompress(content)
    except EOFError:
        raise UserError(BROKEN.format("truncated"), where=path, mend=MEND) from None
    except (OSError, zlib.error, ValueError) as error:
        raise UserError(BROKEN.format(f"not readable ({error})"), where=path, mend=MEND) from None
    except Exception as error:  # isal has an exception class of its own
        raise UserError(BROKEN.format(f"not readable ({error})"), where=path, mend=MEND) from None


def inflate_start(path: Path, size: int) -> bytes:
    """Return the first `size` decompressed bytes of a file, which need not be compressed."""
    with path.open("rb") as file:
        content = file.read(size + 8192)
    if not content.startswith(MAGIC):
        return content[:size]
    try:
        return zlib.decompressobj(wbits=31).decompress(content, size)
    except zlib.error as error:
        raise UserError(BROKEN.format(f"not readable ({error})"), where=path, mend=MEND) from None


def deflate(content: bytes) -> bytes:
    """Return the content as a gzip stream; equal contents give equal streams."""
    codec, level = _codec()
    return codec.compress(content, level, mtime=0)
