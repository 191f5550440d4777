"""Pictures with a palette: ITK gives them as RGB, even where every entry of the palette is a grey."""

from __future__ import annotations

import struct
from pathlib import Path

HEAD_BYTES = 8192  # palettes stand at the beginning


def has_grey_palette(path: Path) -> bool:
    """Tell whether a PNG or BMP file has a palette of greys only, so that one channel says it all."""
    name = path.name.lower()
    if not name.endswith((".png", ".bmp")):
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        colours = _png_palette(head) if name.endswith(".png") else _bmp_palette(head)
    except struct.error:
        return False
    return bool(colours) and all(len(set(colour)) == 1 for colour in colours)


def _png_palette(head: bytes) -> list[bytes]:
    position = 8
    while position < len(head):
        size, kind = struct.unpack_from(">I4s", head, position)
        if kind == b"PLTE":
            return _colours(head, position + 8, size // 3, 3)
        if kind == b"IDAT" or (kind == b"IHDR" and head[position + 17] != 3):  # colour type 3: palette
            return []
        position += size + 12
    return []


def _bmp_palette(head: bytes) -> list[bytes]:
    (size,), (bits,) = struct.unpack_from("<I", head, 14), struct.unpack_from("<H", head, 28)
    if bits > 8:
        return []
    used = struct.unpack_from("<I", head, 46)[0] or 2**bits
    return _colours(head, 14 + size, used, 4)


def _colours(head: bytes, start: int, count: int, step: int) -> list[bytes]:
    """Return the entries of a palette; none if it declares more than what was read can hold."""
    if start + count * step > len(head):
        return []
    return [head[i : i + 3] for i in range(start, start + count * step, step)]
