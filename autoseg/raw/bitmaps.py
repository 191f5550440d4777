"""BMP files held to what ITK reads rightly: others make it read and write outside of its memory."""

from __future__ import annotations

import struct
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw.compression import MEND

BMP = ".bmp"
HEADERS = "<2sIHHIIiiHHIIiiII"  # of the file, 14 bytes, and of the picture, 40
COLOURS = 256
CONVERT = "write the picture as PNG"


def refuse_odd_bitmap(path: Path) -> None:
    """Raise UserError for a BMP that is cut, compressed, or has another header than that of Windows.

    ITK 5.4 writes outside of its memory where it expands compressed rows, takes what lies there for voxels where rows
    are missing, and misreads the palettes of OS/2. What is no BMP at all is left to ITK to tell.
    """
    if not path.name.lower().endswith(BMP):
        return
    with path.open("rb") as file:
        start = file.read(struct.calcsize(HEADERS))
    if start[:2] != b"BM":
        return
    if len(start) < struct.calcsize(HEADERS):
        raise UserError("the file is truncated", where=path, mend=MEND)
    _, declared, _, _, offset, header, width, height, _, bits, compression, *_, used, _ = struct.unpack(HEADERS, start)
    if header != 40:
        what = f"the BMP has a picture header of {header} bytes; those of 40 bytes are read"
        raise UserError(what, where=path, mend=CONVERT)
    if compression:
        raise UserError(f"the BMP is compressed (kind {compression}), which is not read", where=path, mend=CONVERT)
    palette = 4 * (used or COLOURS) if bits <= 8 else 0
    if bits <= 8 and (used > COLOURS or 54 + palette > offset):
        raise UserError(f"the palette of {used or COLOURS} colours does not fit", where=path, mend=MEND)
    rows = -(-width * bits // 32) * 4 * abs(height)
    if max(declared, offset + rows) > path.stat().st_size:
        raise UserError("the file is truncated", where=path, mend=MEND)
