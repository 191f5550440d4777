"""MHA, NRRD, PNG, JPG, BMP and TIFF files, by SimpleITK, with the checks that ITK does not make."""

from __future__ import annotations

import re
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import UserError
from autoseg.raw.bitmaps import refuse_odd_bitmap
from autoseg.raw.compression import MEND
from autoseg.raw.declared import refuse_chunks_beyond_the_end, refuse_missing_voxels, refuse_other_files
from autoseg.raw.geometry import FLAT_SPACING, IDENTITY, Geometry, refuse_flat_axes, refuse_odd_spacing
from autoseg.raw.nifti import Header
from autoseg.raw.palettes import has_grey_palette
from autoseg.raw.tiff_pages import TIFFS, refuse_odd_pages
from autoseg.raw.truncation import JPEGS, refuse_truncated
from autoseg.regular_files import refuse_irregular
from autoseg.storage import atomic_path, read_json, write_bytes, write_json

VOLUMES = (".mha", ".mhd", ".nrrd", ".nhdr")
DETACHED = (".mhd", ".nhdr")  # whose voxels may lie in a file beside
PICTURES = (".png", ".bmp", *JPEGS)


def read_header(path: Path) -> Header:
    """Read grid, channels and type without the voxels."""
    reader = _open(path)
    refuse_truncated(path)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if reader.GetDimension() == 4:
        components, size = components * size[3], size[:3]
    return Header(_geometry(reader, path), _channels(path, components), _dtype(reader))


def read(path: Path, *, channels: int | None = None) -> tuple[np.ndarray, Geometry]:
    """Return the voxels (C, Z, Y, X) in their own type, and the grid.

    The alpha channel of a picture is dropped, unless `channels` asks for as many as the file has.
    """
    import SimpleITK as sitk

    reader = _open(path)
    refuse_truncated(path)
    refuse_missing_voxels(path, prod(reader.GetSize()) * reader.GetNumberOfComponents() * _dtype(reader).itemsize)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(f"the file cannot be read ({_reason(error, path)})", where=path, mend=MEND) from None
    array = sitk.GetArrayViewFromImage(image)  # (T, Z, Y, X, components), as far as there are such axes
    geometry = _geometry(reader, path)
    per_voxel = image.GetNumberOfComponentsPerPixel()
    array = np.moveaxis(array.reshape(-1, *geometry.size, per_voxel), -1, 0)
    array = array.reshape(-1, *geometry.size)
    if channels != len(array):
        array = array[: _channels(path, len(array))]
    return np.array(array), geometry


def _open(path: Path):
    import SimpleITK as sitk

    if path.is_file():
        refuse_other_files(path)
        refuse_chunks_beyond_the_end(path)
        refuse_odd_bitmap(path)
        refuse_odd_pages(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if not path.exists():
            raise UserError("the file does not exist", where=path, mend="correct the path") from None
        what = "the file is empty" if not path.stat().st_size else f"the header cannot be read ({_reason(error, path)})"
        raise UserError(what, where=path, mend=MEND) from None
    if reader.GetDimension() not in (2, 3, 4):
        raise UserError(
            f"the file has {reader.GetDimension()} axes; images have 2, 3, or 3 and channels",
            where=path,
            mend="write the file again with these axes",
        )
    if min(reader.GetSize()) < 1:
        raise UserError(f"the file has an axis without voxels: its size is {reader.GetSize()}", where=path, mend=MEND)
    return reader


def _dtype(reader) -> np.dtype:
    import SimpleITK as sitk

    names = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).removeprefix("vector of ")
    bits = "".join(letter for letter in names.split("-bit")[0] if letter.isdigit()) or "64"
    kind = "float" if "float" in names else "uint" if "unsigned" in names else "int"
    return np.dtype(f"{kind}{bits}")


def _channels(path: Path, components: int) -> int:
    """Return how many channels a file counts for: alpha is none, and a palette of greys is one."""
    if not path.name.lower().endswith(PICTURES + TIFFS):
        return components
    if components >= 3 and has_grey_palette(path):
        return 1
    return {2: 1, 4: 3}.get(components, components)


def _geometry(reader, path: Path) -> Geometry:
    dims = 2 if reader.GetDimension() == 2 else 3
    size = tuple(int(s) for s in (*reader.GetSize()[:3], 1)[:3][::-1])
    if path.name.lower().endswith(PICTURES + TIFFS):
        dims = 2 if size[0] == 1 else 3
        spacing = (FLAT_SPACING, 1.0, 1.0) if dims == 2 else _sidecar_spacing(path)
        return Geometry(spacing, size, (0.0, 0.0, 0.0), IDENTITY, dims, path, physical=False)
    spacing = [float(value) for value in reader.GetSpacing()[:dims]]
    refuse_odd_spacing(spacing, path)
    origin = [*reader.GetOrigin()[:dims], 0.0][:3]
    direction = np.eye(3)
    axes = reader.GetDimension()
    direction[:dims, :dims] = np.reshape(reader.GetDirection(), (axes, axes))[:dims, :dims]
    refuse_flat_axes(direction, path)
    z = spacing[2] if dims == 3 else FLAT_SPACING * max(spacing)
    place = tuple(float(v) for v in origin), tuple(float(v) for v in direction.ravel())
    return Geometry((z, spacing[1], spacing[0]), size, *place, dims, path)


def sidecar(path: Path) -> Path:
    """Return the JSON file that gives the spacing of a TIFF stack: CASE.json beside CASE_0000.tif or CASE.tif."""
    stem = path.name[: path.name.rindex(".")]
    if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdigit():
        stem = stem[:-5]
    return path.with_name(f"{stem}.json")


def _sidecar_spacing(path: Path) -> tuple[float, float, float]:
    file = sidecar(path)
    refuse_irregular(file)
    if not file.is_file():
        return (1.0, 1.0, 1.0)
    content = read_json(file, editable=True)
    written = content.get("spacing") if isinstance(content, dict) else None
    if not (isinstance(written, list) and len(written) == 3 and all(map(_is_length, written))):
        raise UserError(
            'a TIFF stack\'s spacing is written as {"spacing": [z, y, x]} in mm', where=file, mend="correct the file"
        )
    z, y, x = map(float, written)
    refuse_odd_spacing((z, y, x), file)
    return (z, y, x)


def _is_length(value: Any) -> bool:
    """Return whether a value from JSON is a positive number that a float can hold; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < sys.float_info.max


def _reason(error: Exception, path: Path) -> str:
    """Return what ITK says is wrong, in one line, without the addresses of its objects and the path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if "ERROR: " in line and "nrrd" not in line.lower()]
    line = re.sub(r"^.*?ERROR: (\w+\(\w+\): )?", "", (telling or lines)[-1])
    return line.replace(str(path), path.name)


def write(path: Path, label: np.ndarray, geometry: Geometry) -> None:
    """Write a label map (Z, Y, X) on the grid."""
    import SimpleITK as sitk

    name = path.name.lower()
    if not name.endswith(VOLUMES):
        label = _for_picture(path, label)
    flat = geometry.dims == 2 or name.endswith(PICTURES)
    image = sitk.GetImageFromArray(label[0] if flat else label)
    if name.endswith(VOLUMES):
        axes = 2 if flat else 3
        image.SetSpacing(geometry.spacing[:0:-1] if flat else geometry.spacing[::-1])
        image.SetOrigin(geometry.origin[:axes])
        image.SetDirection(np.reshape(geometry.direction, (3, 3))[:axes, :axes].ravel().tolist())
    if name.endswith(DETACHED):  # header and voxels in one file, which readers of these accept
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            temporary = Path(folder) / f"label{'.mha' if name.endswith('.mhd') else '.nrrd'}"
            sitk.WriteImage(image, str(temporary), True)
            write_bytes(path, temporary.read_bytes())
    else:
        with atomic_path(path) as temporary:
            sitk.WriteImage(image, str(temporary), True)
    if name.endswith(TIFFS) and not flat:
        write_json(sidecar(path), {"spacing": list(geometry.spacing)})


def _for_picture(path: Path, label: np.ndarray) -> np.ndarray:
    """Return the label map in a type that pictures know; refuse what they cannot hold."""
    name = path.name.lower()
    if name.endswith(JPEGS):
        raise UserError("JPG loses label values", where=path, mend="write label maps as .png")
    if name.endswith(PICTURES) and len(label) != 1:
        raise UserError(f"a volume of {len(label)} slices cannot be written as a picture", where=path)
    low, high = int(label.min()), int(label.max())
    most = highest_value(name)
    if low < 0 or high > most:
        raise UserError(f"values {low}..{high} do not fit: this format holds 0..{most}", where=path)
    return label.astype(np.uint8 if high <= 255 else np.uint16)


def highest_value(ending: str) -> int:
    """Return the highest value of a label map in a picture or TIFF of this ending; the lowest one is 0."""
    return 255 if ending.lower().endswith(".bmp") else 65535
