"""NIfTI files: header, voxels, and label maps on exactly the image's grid."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw import compression
from autoseg.raw.forms import SCANNER, TO_ITK, SecondPlace, millimetres, second_place, used_affine
from autoseg.raw.geometry import FLAT_SPACING, Geometry, refuse_flat_axes, refuse_odd_spacing
from autoseg.storage import write_bytes

ENDINGS = (".nii.gz", ".nii")
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
EPSILON = float(np.finfo(np.float64).eps)
MAGIC = re.compile(rb"n[i+][1-9]\0")  # as the library of NIfTI, which ITK uses, takes it
LARGEST_OFFSET = 2**30  # of the voxels: what extensions of the header may take


@dataclass(frozen=True)
class Header:
    """What a file says of itself before a voxel is read."""

    geometry: Geometry
    components: int  # channels in this one file
    dtype: np.dtype
    second_place: SecondPlace | None = None  # of a NIfTI header that gives two


def read_header(path: Path) -> Header:
    """Read grid, channels and type of a NIfTI file without its voxels."""
    header = _parse(compression.inflate_start(path, HEADER_BYTES), path)
    described = _describe(header, path)
    return replace(described, second_place=second_place(header, described.geometry))


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Return the voxels (C, Z, Y, X), scaled as the header says, in their own type if unscaled, and the grid."""
    header = _parse(compression.inflate_start(path, HEADER_BYTES), path)
    described = _describe(header, path)
    count, offset = prod(header.get_data_shape()), _offset(header, path)
    needed = offset + count * described.dtype.itemsize
    content = path.read_bytes()
    if content.startswith(compression.MAGIC):
        content = compression.inflate(content, path, needed)
    if len(content) < needed:
        raise UserError(
            f"the file is truncated: {len(content)} of {needed} bytes are there", where=path, mend=compression.MEND
        )
    voxels = np.frombuffer(content, described.dtype, count, offset)
    if described.dtype.names:  # RGB: bytes of one voxel lie together
        voxels = voxels.view(np.uint8).reshape(*described.geometry.size, -1)
        return np.moveaxis(voxels, -1, 0), described.geometry
    voxels = voxels.reshape(described.components, *described.geometry.size)
    return _scaled(voxels, header), described.geometry


def _offset(header, path: Path) -> int:
    """Return where the voxels begin: behind the header and the four bytes that tell of extensions."""
    offset, first = float(header["vox_offset"]), int(header["sizeof_hdr"]) + 4
    if not first <= offset <= LARGEST_OFFSET:
        raise UserError(
            f"the header says that voxels begin at byte {offset:g} (vox_offset), in this format they begin at {first} "
            "or later",
            where=path,
            mend="copy the file again, or write it again with the program that made it",
        )
    return int(offset)


def _parse(start: bytes, path: Path):
    import nibabel

    size = int.from_bytes(start[:4], "little")
    kind = nibabel.Nifti2Header if size in (540, 0x1C020000) else nibabel.Nifti1Header
    if size not in (348, 540, 0x5C010000, 0x1C020000) or len(start) < kind.sizeof_hdr:
        raise UserError("not a NIfTI file: the header is missing or damaged", where=path, mend=compression.MEND)
    header = kind(start[: kind.sizeof_hdr], check=False)
    _require_magic(header["magic"].tobytes(), path)
    return header


def _require_magic(magic: bytes, path: Path) -> None:
    """Refuse what readers take for ANALYZE, which has neither an affine nor scaling: ITK would drop both."""
    if not MAGIC.match(magic):
        raise UserError(
            f"the header has the magic {magic!r}, not n+1 or n+2 of NIfTI: others take it for ANALYZE, elsewhere",
            where=path,
            mend="write the file again as NIfTI, and see that origin and orientation are right",
        )


def _describe(header, path: Path) -> Header:
    try:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    except Exception as error:
        raise UserError(f"the NIfTI header is damaged ({error})", where=path, mend=compression.MEND) from None
    extra = [size for size in shape[3:] if size != 1]
    if len(shape) < 2 or min(shape) < 1 or len(extra) > 1:
        raise UserError(
            f"the file has shape {tuple(shape)}; an image is (x, y), (x, y, z) or (x, y, z, channels)",
            where=path,
            mend="write the file again with these axes",
        )
    if dtype.kind == "c" or (dtype.kind == "V" and not dtype.names):
        raise UserError(f"voxels of type {dtype} are not supported", where=path, mend="store real numbers")
    components = extra[0] if extra else len(dtype.names or "1")
    return Header(_geometry(header, path), components, dtype)


def _geometry(header, path: Path) -> Geometry:
    shape = header.get_data_shape()
    dims = min(3, len(shape))
    size = (*shape[:3], 1)[:3]
    steps = np.abs(np.asarray(header["pixdim"][1:4], dtype=float)) * millimetres(header)
    affine = used_affine(header)
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = np.where(np.abs(steps - columns) <= 1e-3 * columns, steps, columns)  # the nominal value where it agrees
    if not np.isfinite(affine).all():
        raise UserError(
            f"the header gives spacing {spacing[:dims].tolist()} mm, which is no grid",
            where=path,
            mend="write the file again with a valid affine",
        )
    refuse_odd_spacing(spacing[:dims], path)
    spacing[dims:], columns[dims:] = 1.0, np.where(columns[dims:] > 0, columns[dims:], 1.0)
    scale = np.where(np.arange(3) < dims, spacing, columns)
    direction = affine[:3, :3] / scale
    if not direction[:, 2].any():
        direction[:, 2] = np.cross(direction[:, 0], direction[:, 1])
    refuse_flat_axes(direction, path)
    z = spacing[2] if dims == 3 else FLAT_SPACING * max(spacing[:2])
    return Geometry(
        spacing=(float(z), float(spacing[1]), float(spacing[0])),
        size=tuple(int(s) for s in size[::-1]),
        origin=tuple(float(v) for v in affine[:3, 3]),
        direction=tuple(float(v) for v in direction.ravel()),
        dims=dims,
        source=path,
    )


def _scaled(voxels: np.ndarray, header) -> np.ndarray:
    slope, inter = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    inter = inter if np.isfinite(inter) else 0.0
    slope = slope if np.isfinite(slope) and abs(slope) > EPSILON else 1.0  # as ITK does; the standard says: no scaling
    if abs(slope - 1) <= EPSILON and abs(inter) <= EPSILON:
        return voxels
    wide = np.float32 if voxels.dtype.itemsize <= 2 or voxels.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # what is not a number is told by those who need numbers
        return voxels.astype(wide) * wide(slope) + wide(inter)


def write(path: Path, voxels: np.ndarray, geometry: Geometry) -> None:
    """Write (Z, Y, X) or (K, Z, Y, X) on the grid; sform, qform and codes are the source's, if it is NIfTI."""
    import nibabel

    shape = voxels.shape[::-1]
    if geometry.dims == 2:
        shape = (*shape[:2], *((1, *shape[3:]) if len(shape) > 3 else ()))
    header = (nibabel.Nifti2Header if max(shape) > 32767 else nibabel.Nifti1Header)()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(TO_ITK @ geometry.affine, code=SCANNER)
    header.set_sform(TO_ITK @ geometry.affine, code=SCANNER)
    _copy_forms(header, geometry)
    header["vox_offset"] = header.sizeof_hdr + 4  # four zero bytes: no extensions follow
    header["scl_slope"], header["scl_inter"] = 1, 0
    content = header.binaryblock + bytes(4) + voxels.astype(header.get_data_dtype(), copy=False).tobytes()
    write_bytes(path, compression.deflate(content) if path.name.endswith(".gz") else content)


def _copy_forms(header, geometry: Geometry) -> None:
    """Take over both forms of the source file, since other programs may read the other one."""
    if not geometry.source.name.endswith(ENDINGS) or not geometry.source.is_file():
        return
    source = _parse(compression.inflate_start(geometry.source, HEADER_BYTES), geometry.source)
    if _geometry(source, geometry.source) != geometry:
        return  # the file has changed since
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z"):
        header[name] = source[name]
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
