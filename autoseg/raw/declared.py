"""What the header of a file declares, held against the file: voxels that cannot be in it, or that lie elsewhere."""

from __future__ import annotations

import re
import struct
from pathlib import Path, PurePosixPath, PureWindowsPath

from autoseg.errors import UserError
from autoseg.raw.compression import MEND

HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")
HEADER_BYTES = 2**16
DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:=?)\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
RAW_META = re.compile(rb"^\s*ElementDataFile\s*=\s*LOCAL\s*?\n", re.IGNORECASE | re.MULTILINE)
COMPRESSED = re.compile(rb"^\s*CompressedData\s*=\s*True", re.IGNORECASE | re.MULTILINE)
MOST_COMPRESSED = 2000  # decompressed over stored bytes; deflate reaches 1032
ALWAYS_READ = 2**30  # declared bytes for which nobody asks


def refuse_other_files(path: Path) -> None:
    """Raise UserError if the header takes its voxels from a file that is not below its own folder."""
    if not path.name.lower().endswith(HEADERS):
        return
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES).split(b"\n\n")[0]
    for match in DATA_FILE.finditer(header):
        name = match[1].decode("utf-8", "replace").strip()
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise UserError(
                f"the header takes its voxels from outside of its folder: {name}",
                where=path,
                mend="put the file with the voxels beside the header, and give its name alone",
            )


def refuse_missing_voxels(path: Path, declared: int) -> None:
    """Raise UserError if a file cannot hold the `declared` bytes of voxels, so that nobody asks for their memory."""
    name, size = path.name.lower(), path.stat().st_size
    if name.endswith(".mha"):
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        start = RAW_META.search(header)
        if start and not COMPRESSED.search(header[: start.end()]) and size < start.end() + declared:
            message = f"the file is truncated: {size} of {start.end() + declared} bytes are there"
            raise UserError(message, where=path, mend=MEND)
    if not name.endswith((".mhd", ".nhdr")) and declared > max(ALWAYS_READ, MOST_COMPRESSED * size):
        message = f"the header declares {declared / 2**30:.1f} GiB of voxels, which a file of {size} bytes cannot hold"
        raise UserError(message, where=path, mend=MEND)


def refuse_chunks_beyond_the_end(path: Path) -> None:
    """Raise UserError if a PNG's chunk is longer than what is left of the file; its reader would make room for it."""
    if not path.name.lower().endswith(".png"):
        return
    size, position = path.stat().st_size, 8
    with path.open("rb") as file:
        while position + 12 <= size:
            file.seek(position)
            length, kind = struct.unpack(">I4s", file.read(8))
            position += 12 + length
            if kind == b"IEND":
                return
    if position > size > 8:
        raise UserError("the file is truncated", where=path, mend=MEND)
