"""DICOM series: one folder with one image series, its slices sorted by position and checked for gaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw.geometry import Geometry, refuse_odd_spacing
from autoseg.raw.nifti import Header
from autoseg.regular_files import refuse_irregular

POSITION, ORIENTATION, PIXEL_SPACING, THICKNESS = "0020|0032", "0020|0037", "0028|0030", "0018|0050"
GAP = 0.05  # slice distances may differ by this share of their median, or by 0.01 mm


@dataclass(frozen=True)
class _Series:
    files: tuple[str, ...]  # in the order of increasing position along the slice normal
    geometry: Geometry


def is_series(folder: Path) -> bool:
    """Tell whether a folder holds DICOM image files: the first regular files are looked at."""
    if not folder.is_dir():
        return False
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith("."))
    return any(_is_dicom(file) for file, _ in zip(files, range(3), strict=False))


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return content.read(132)[128:] == b"DICM"
    except OSError:  # told when the case is read, and of that case only
        return False


def read_header(folder: Path) -> Header:
    """Read the grid of a series from the headers of its slices."""
    return Header(_series(folder).geometry, 1, np.dtype(np.float32))


def read(folder: Path) -> tuple[np.ndarray, Geometry]:
    """Return the voxels (1, Z, Y, X) in physical units (rescale slope and intercept applied), and the grid."""
    import SimpleITK as sitk

    series = _series(folder)
    slices = np.empty(series.geometry.size, dtype=np.float32)
    for index, file in enumerate(series.files):
        try:
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(file))
        except RuntimeError:
            raise UserError("the slice cannot be read", where=file, mend="export the series again") from None
        if pixels.size != slices[0].size:
            raise UserError(f"the slice has shape {pixels.shape}, the series {slices.shape}", where=file)
        slices[index] = pixels.reshape(slices[0].shape)
    return slices[None], series.geometry


def _series(folder: Path) -> _Series:
    import SimpleITK as sitk

    for file in sorted(folder.iterdir()):  # ITK opens them all
        refuse_irregular(file)
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    series = {name: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in found}
    if len(series) != 1:
        sizes = ", ".join(f"{len(files)} files" for files in series.values())
        raise UserError(
            f"the folder holds {len(series)} DICOM image series ({sizes or 'no readable file'})",
            where=folder,
            mend="give one folder per series",
        )
    (files,) = series.values()
    return _sorted(folder, files)


def _sorted(folder: Path, files: tuple[str, ...]) -> _Series:
    headers = [_slice_header(file) for file in files]
    rows = np.array([orientation for _, orientation, _, _, _ in headers])
    shapes = {(shape, tuple(spacing)) for _, _, spacing, _, shape in headers}
    if np.abs(rows - rows[0]).max() > 1e-3 or len(shapes) != 1:
        raise UserError("the slices differ in orientation, size or pixel spacing", where=folder, mend=_MEND)
    normal = np.cross(rows[0, :3], rows[0, 3:])
    positions = np.array([position for position, *_ in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions, files = positions[order], tuple(files[i] for i in order)
    step = _step(folder, files, positions, normal, thickness=headers[0][3])
    spacing, (height, width) = headers[0][2], headers[0][4]
    refuse_odd_spacing((*spacing[::-1], float(np.linalg.norm(step))), folder)
    axes = np.stack([rows[0, :3], rows[0, 3:], step / np.linalg.norm(step)], axis=1)
    geometry = Geometry(
        spacing=(float(np.linalg.norm(step)), spacing[0], spacing[1]),
        size=(len(files), height, width),
        origin=tuple(float(value) for value in positions[0]),
        direction=tuple(float(value) for value in axes.ravel()),
        dims=3,
        source=folder,
    )
    return _Series(files, geometry)


_MEND = "export the complete series once, into a folder of its own"


def _slice_header(file: str) -> tuple[np.ndarray, np.ndarray, list[float], float, tuple[int, int]]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
        position, orientation, spacing = (
            [float(value) for value in reader.GetMetaData(tag).split("\\")]
            for tag in (POSITION, ORIENTATION, PIXEL_SPACING)
        )
        thickness = float(reader.GetMetaData(THICKNESS)) if reader.HasMetaDataKey(THICKNESS) else 1.0
    except (RuntimeError, ValueError):
        raise UserError(
            "the slice lacks position, orientation or pixel spacing", where=file, mend="export the series again"
        ) from None
    width, height = reader.GetSize()[:2]
    return np.array(position), np.array(orientation), spacing, thickness, (height, width)


def _step(folder: Path, files: tuple[str, ...], positions: np.ndarray, normal: np.ndarray, *, thickness: float):
    """Return the vector from slice to slice; a gap, a double slice or a sheared stack is a UserError."""
    if len(positions) == 1:
        return normal * thickness
    steps = np.diff(positions, axis=0)
    distances = steps @ normal
    usual = float(np.median(distances))
    wrong = np.flatnonzero(np.abs(distances - usual) > max(0.01, GAP * usual))
    if usual <= 0.001 or len(wrong):
        place = int(wrong[0]) if len(wrong) else 0
        names = " and ".join(Path(file).name for file in files[place : place + 2])
        what = "lie on one another" if distances[place] <= 0.001 else f"are {distances[place]:.3f} mm apart"
        raise UserError(
            f"the slices {names} {what}, where {usual:.3f} mm is usual: slices are missing, double or uneven",
            where=folder,
            mend=_MEND,
        )
    sideways = np.linalg.norm(steps.mean(0) - steps.mean(0) @ normal * normal)
    if sideways > 0.05 * usual:
        raise UserError(
            f"the slices are shifted sideways by {sideways:.3f} mm each (tilted gantry)",
            where=folder,
            mend="resample the series to a straight grid first",
        )
    return normal * float((positions[-1] - positions[0]) @ normal) / (len(positions) - 1)
