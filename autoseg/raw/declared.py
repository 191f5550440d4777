"""What the header of a file declares, held against the file: voxels that cannot be in it, or that lie elsewhere."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from autoseg.errors import UserError
from autoseg.raw.compression import MEND
from autoseg.raw.problems import short
from autoseg.regular_files import refuse_irregular

META, NRRD = (".mha", ".mhd"), (".nrrd", ".nhdr")
HEADER_BYTES = 2**20  # the longest header that is read; 200 segments of 3D Slicer take a tenth of it
META_FILE = re.compile(rb"ElementDataFile[\s=:]*([^\r\n]*)", re.IGNORECASE)  # whatever MetaIO may take for the field
META_END = re.compile(rb"[ \t]*ElementDataFile[ \t]*[=:][ \t]*(?:LOCAL|Local|local)[ \t\r]*\n?")
META_AXES = re.compile(rb"NDims[\s=:]*([^\r\n]*)")
IN_THE_FILE = (b"LOCAL", b"Local", b"local")
PLAIN_LINE = re.compile(rb"[ \t]*[^\s=:][^=:\0]*[=:][ \t]*[^\s=:][^\0]*")
LONGEST_LINE = 400  # bytes; of longer ones MetaIO may take a part for the next line
NRRD_FILE = re.compile(rb"\s*data[\s_]*file\s*:\s*([^\r\n]*)", re.IGNORECASE)
RAW_META = re.compile(rb"^\s*ElementDataFile\s*[=:]\s*LOCAL\s*?\n", re.IGNORECASE | re.MULTILINE)
COMPRESSED = re.compile(rb"^\s*CompressedData\s*[=:]\s*True", re.IGNORECASE | re.MULTILINE)
MOST_COMPRESSED = 2000  # decompressed over stored bytes; deflate reaches 1032
ALWAYS_READ = 2**30  # declared bytes for which nobody asks


def refuse_other_files(path: Path) -> None:
    """Raise UserError if the header takes its voxels from a file that is not below its own folder."""
    if path.name.lower().endswith(META):
        names = _meta_files(path)
    elif path.name.lower().endswith(NRRD):
        names = _nrrd_files(path)
    else:
        return
    for name in names:
        _refuse_elsewhere(path, os.fsdecode(name.strip()))


def _meta_files(path: Path) -> list[bytes]:
    """Return every file that a MetaIO header may name; fields stand in lines `NAME = VALUE` or `NAME : VALUE`.

    The header ends with the line that says that the voxels follow. It counts only behind a plain line, since MetaIO
    takes what comes behind a line without separator for a part of that line, and goes on.
    """
    lines: list[bytes] = []
    plain: object = True
    for line in _lines(path):
        lines.append(line)
        if plain and META_END.fullmatch(line):
            break
        if line.strip():
            plain = len(line) < LONGEST_LINE and PLAIN_LINE.fullmatch(line)
    header = b"".join(lines)
    for axes in META_AXES.findall(header):
        if not re.fullmatch(rb"[1-9]\s*", axes):  # MetaIO would count from -1 to the end of time
            what = f"the header declares {short(repr(axes.decode('ascii', 'replace')))} axes"
            raise UserError(what, where=path, mend=MEND)
    return [name for name in META_FILE.findall(header) if name.strip() not in IN_THE_FILE]


def _nrrd_files(path: Path) -> list[bytes]:
    """Return every file that the lines `data file: NAME` of an NRRD header name; it ends at its first empty line."""
    names = []
    for line in _lines(path):
        if not line.rstrip(b"\r\n"):
            break
        names += [match[1] for part in line.split(b"\r") if (match := NRRD_FILE.match(part))]
    return names


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; UserError if there are more than the longest header has."""
    left = HEADER_BYTES
    with path.open("rb") as file:
        while line := file.readline(left):
            left -= len(line)
            yield line
        if not left and file.read(1):
            raise UserError(
                f"the header does not end within {HEADER_BYTES // 1024} KiB",
                where=path,
                mend="see that the file is whole, or convert it to .nii.gz",
            )


def _refuse_elsewhere(path: Path, name: str) -> None:
    """Raise UserError unless `name` is one file that lies, links followed, in the folder of the header or below."""
    if name.startswith("LIST") or "%" in name or name == "-":
        raise UserError(
            f"the header takes its voxels from several files or from a pipe: {short(name)}",
            where=path,
            mend="convert it to one file, such as .nii.gz",
        )
    windows = PureWindowsPath(name)
    leads_out = PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    try:
        file = (path.parent / name).resolve()
        folders = path.parent.resolve(), path.resolve().parent  # header and voxels may be linked together
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, links in a circle
        leads_out = True
    if leads_out or not any(file.is_relative_to(folder) for folder in folders):
        raise UserError(
            f"the header takes its voxels from outside of its folder: {short(name)}",
            where=path,
            mend="put the file with the voxels beside the header, and give its name alone",
        )
    refuse_irregular(file)


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
