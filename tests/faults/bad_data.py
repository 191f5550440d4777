"""A small sound data set of two real cases, one of which, `bad`, a fault is put into."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SOURCE = Path(__file__).resolve().parents[2] / "autoseg" / "demo" / "data" / "Dataset004_Hippocampus"
GOOD, BAD = "hippocampus_104", "hippocampus_249"
DESCRIPTION = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "anterior": 1, "posterior": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@dataclass(frozen=True)
class Data:
    """The data set in a folder of its own, and the files of the case that is to be spoilt."""

    place: Path

    @property
    def folder(self) -> Path:
        return self.place / "data"

    @property
    def image(self) -> Path:
        return self.folder / "imagesTr" / "bad_0000.nii.gz"

    @property
    def label(self) -> Path:
        return self.folder / "labelsTr" / "bad.nii.gz"

    @property
    def file(self) -> Path:
        return self.folder / "dataset.json"

    def describe(self, **changes: Any) -> None:
        """Change fields of dataset.json; None removes one."""
        content = json.loads(self.file.read_text()) | changes
        self.file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    def voxels(self, path: Path, change: Callable[[np.ndarray], np.ndarray], kind: type | None = None) -> None:
        """Replace the voxels (x, y, z) of a file."""
        image = nibabel.load(path)
        array = change(np.asarray(image.dataobj).copy())
        nibabel.save(nibabel.Nifti1Image(array if kind is None else array.astype(kind), image.affine), path)

    def header(self, path: Path, **fields: Any) -> None:
        """Overwrite fields of a NIfTI-1 header and leave the voxels as they are."""
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content), 1))

    def affine(self, path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the affine of a file."""
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).copy(), change(image.affine.copy())), path)

    def only(self, ending: str, write: Callable[[Path], Any]) -> None:
        """Replace the image of `bad` by one of another format; a list then names the cases."""
        path = self.image.with_name(f"bad{ending}")
        write(path)
        sound = {"case": "good", "image": "imagesTr/good_0000.nii.gz", "label": "labelsTr/good.nii.gz"}
        self.describe(cases=[sound, {"case": "bad", "image": f"imagesTr/{path.name}"}], numTraining=1)


def sound(place: Path) -> Data:
    """Write the sound data set below `place`."""
    data = Data(place)
    for name in ("imagesTr", "labelsTr"):
        (data.folder / name).mkdir(parents=True)
    for case, source in (("good", GOOD), ("bad", BAD)):
        (data.folder / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(_bundled(f"imagesTr/{source}_0000.nii.gz"))
        (data.folder / "labelsTr" / f"{case}.nii.gz").write_bytes(_bundled(f"labelsTr/{source}.nii.gz"))
    data.file.write_text(json.dumps(DESCRIPTION))
    return data


@cache
def _bundled(name: str) -> bytes:
    """Return a bundled file, cut to 12 slices so that many data sets are checked in little time."""
    image = nibabel.load(SOURCE / name)
    part = nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, 8:20], image.affine, dtype=np.int16)
    return gzip.compress(part.to_bytes(), 1, mtime=0)


def nifti_header(shape: tuple[int, ...], *, second: bool = False) -> bytes:
    """Return a NIfTI header of float voxels of any declared shape, with no voxel behind it."""
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    header = kind()
    header.set_data_dtype(np.float32)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["pixdim"][1:4] = 1
    header["vox_offset"] = header.sizeof_hdr + 4
    header.set_sform(np.eye(4), code=1)
    return header.binaryblock + bytes(4)


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """Return a grey 8-bit PNG of declared size with the given compressed rows."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def deep_colour_tiff() -> bytes:
    """Return a grey TIFF of 4 x 4 pixels with 10 bits each, which few programs read."""
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 1, 10),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 4),
        (279, 4, 1, 20),
    ]
    body = b"\x5a" * 20
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + struct.pack("<I", 0)
