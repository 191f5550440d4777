"""Read and write images and label maps of every format.

NIfTI is read by nibabel's headers and one inflate; MHA, NRRD, PNG, JPG, BMP and TIFF by SimpleITK; a folder is one
DICOM series. A 2D image is a volume of one slice. Pictures have 8 or 16 bits, grey or RGB; an alpha channel is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw import dicom, itk_files, nifti
from autoseg.raw.geometry import Geometry, Image, compare
from autoseg.raw.nifti import Header
from autoseg.regular_files import refuse_irregular
from autoseg.storage import atomic_path

ENDINGS = (*nifti.ENDINGS, *itk_files.VOLUMES, *itk_files.PICTURES, *itk_files.TIFFS)
FLAT_ENDINGS = (*itk_files.PICTURES, *itk_files.TIFFS)  # formats without physical space


def ending_of(path: Path) -> str | None:
    """Return the supported file ending of a path, as it is written there, or None."""
    name = path.name.lower()
    found = next((ending for ending in ENDINGS if name.endswith(ending) and len(name) > len(ending)), None)
    return None if found is None else path.name[-len(found) :]


def read_header(path: Path) -> Header:
    """Read grid, number of channels and type of one file (or DICOM folder) without its voxels."""
    if path.is_dir():
        return dicom.read_header(path)
    refuse_irregular(path)
    return _module(path).read_header(path)


def read_geometry(path: Path) -> Geometry:
    """Read the grid of one file (or DICOM folder) without its voxels."""
    return read_header(path).geometry


def read_image(paths: Sequence[Path], *, channels: int) -> Image:
    """Read one case from its files, in the order of the channels; a file may hold several (RGB, 4D).

    Raises UserError, naming the file, for missing, truncated or damaged files, other grids than the first file's, and
    another number of channels than `channels`.
    """
    arrays, first = [], None
    for path in paths:
        array, geometry = _read(path, channels if len(paths) == 1 else None)
        if first is None:
            first = geometry
        elif compare(first, geometry).verdict != "equal" or first.size != geometry.size:
            raise UserError(
                f"the channels lie on different grids: {geometry.describe()}; {first.source.name} has "
                f"{first.describe()}",
                where=path,
                mend="resample all channels of a case to one grid",
            )
        arrays.append(array)
    found = sum(len(array) for array in arrays)
    if first is None or found != channels:
        raise channel_error(paths, found, channels)
    data = np.empty((channels, *first.size), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes inf, which check() reports
        np.concatenate(arrays, out=data, casting="unsafe")
    return Image(data, first)


def channel_error(paths: Sequence[Path], found: int, channels: int) -> UserError:
    """Return the error of a case with the wrong number of channels."""
    mend = "give every channel of the data set, one file each or all in one, and no others"
    if paths and paths[0].name.lower().endswith(FLAT_ENDINGS) and {found, channels} == {1, 3}:
        mend = "convert the picture to grey" if found == 3 else "convert the picture to RGB"
        mend += f", or declare {'R, G and B' if found == 3 else 'one channel'} under channel_names"
    return UserError(
        f"{len(paths)} file(s) with {found} channel(s) in all, where {channels} channel(s) are declared",
        where=paths[0] if paths else None,
        mend=mend,
    )


def read_label(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a label map: integer raw values (Z, Y, X), and its grid; values between integers are a UserError."""
    array, geometry = _read(path, None)
    if len(array) > 1 and not all(np.array_equal(array[0], other) for other in array[1:]):
        raise UserError(
            f"the label map has {len(array)} different channels",
            where=path,
            mend="store one value per voxel (a picture: grey, neither RGB nor palette)",
        )
    return as_integers(array[0], path), geometry


def as_integers(label: np.ndarray, path: Path) -> np.ndarray:
    """Return a label map in an integer type; values between integers are a UserError with an example."""
    if label.dtype.kind in "iu":
        return label
    with np.errstate(invalid="ignore"):
        rounded = np.rint(label)
        wrong = ~(label == rounded) | (np.abs(label) > 2**31 - 1)
    if wrong.any():
        raise UserError(
            f"the label map has {int(wrong.sum())} voxel(s) that are not integers, such as {label[wrong][0]:g}",
            where=path,
            mend="store integers; resample label maps by nearest neighbour",
        )
    return rounded.astype(np.int32)


def write_label(path: Path, label: np.ndarray, geometry: Geometry) -> None:
    """Write a label map (Z, Y, X) of integers atomically on exactly the grid; the ending of `path` is the format."""
    _expect_size(path, label.shape, geometry)
    if label.dtype.kind == "b" or label.dtype.itemsize == 8:
        label = label.astype(
            np.min_scalar_type(int(label.max()) if label.min() >= 0 else -int(np.abs(label).max()) - 1)
        )
    if ending_of(path) in nifti.ENDINGS:
        nifti.write(path, label, geometry)
    else:
        _module(path).write(path, label, geometry)


def write_probabilities(path: Path, probabilities: np.ndarray, geometry: Geometry) -> None:
    """Write probabilities (K, Z, Y, X), float16 or float32.

    The ending of `path` is `probability_ending`: a 4D NIfTI of float32 on the grid, or a numpy file as given.
    """
    _expect_size(path, probabilities.shape[1:], geometry)
    if path.suffix == ".npy":
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, probabilities, allow_pickle=False)
    else:
        nifti.write(path, probabilities.astype(np.float32, copy=False), geometry)


def probability_ending(file_ending: str) -> str:
    """Return the ending of probability files for images of `file_ending`: pictures have no 4D format of their own."""
    return ".npy" if file_ending.lower().endswith(FLAT_ENDINGS) else ".nii.gz"


def _expect_size(path: Path, shape: Sequence[int], geometry: Geometry) -> None:
    if tuple(shape) != geometry.size:
        raise ValueError(f"{path}: the array has shape {tuple(shape)}, the grid {geometry.size}")


def _read(path: Path, channels: int | None) -> tuple[np.ndarray, Geometry]:
    try:
        if path.is_dir():
            return dicom.read(path)
        refuse_irregular(path)
        module = _module(path)
        return module.read(path) if module is nifti else itk_files.read(path, channels=channels)
    except FileNotFoundError:
        raise UserError("the file does not exist", where=path, mend="correct the path") from None
    except OSError as error:
        mend = "see that the file is there and that you may read it"
        raise UserError(f"the file cannot be read ({error.strerror or error})", where=path, mend=mend) from None


def _module(path: Path):
    ending = ending_of(path)
    if ending is None:
        raise UserError(
            f"the format is not supported; supported are {', '.join(ENDINGS)}",
            where=path,
            mend="convert the file to .nii.gz, a picture to .png",
        )
    return nifti if ending.lower() in nifti.ENDINGS else itk_files
