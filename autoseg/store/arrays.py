"""Compressed arrays on disk: blosc2 frames, cut into blocks that suit the reading of patches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from autoseg.errors import UserError

BLOCK_BYTES = 64 * 1024  # what is decompressed at once; fits the second-level cache
CHUNK_BYTES = 2 * 1024**2
COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 2, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
HALF_PRECISION_LIMIT = 1024.0  # up to here float16 is finer than 0.5, and than 0.05 % of the value


def compress(array: np.ndarray, patch_size: Sequence[int] | None = None) -> bytes:
    """Return a blosc2 frame of an array (..., *S), in blocks shaped after a patch (*S) of the last axes."""
    array = np.ascontiguousarray(array)
    chunks, blocks = partition(array.shape, patch_size or array.shape[-3:], array.itemsize)
    return blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=COMPRESSION).to_cframe()


def partition(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (chunk, block): the patch halved along its longest axis until it is a block, doubled until a chunk."""
    leading = len(shape) - len(patch_size)
    block = [1] * leading + [min(*pair) for pair in zip(patch_size, shape[leading:], strict=True)]
    while prod(block) * itemsize > BLOCK_BYTES:
        longest = max(range(len(block)), key=lambda axis: block[axis])
        block[longest] = -(-block[longest] // 2)
    chunk = list(block)
    while prod(chunk) * itemsize * 2 <= CHUNK_BYTES:
        growing = [axis for axis in range(len(chunk)) if chunk[axis] < shape[axis]]
        if not growing:
            break
        axis = min(growing, key=lambda axis: chunk[axis] if axis >= leading else 0)
        chunk[axis] = min(2 * chunk[axis], shape[axis])
    return tuple(chunk), tuple(block)


def open_array(path: Path) -> Any:
    """Open a stored array for slicing. The handle belongs to one thread; a damaged file is a UserError."""
    mapped = None if sys.platform == "win32" else "r"
    try:
        return blosc2.open(str(path), mode="r", mmap_mode=mapped, dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise damaged(path, error) from None


def read_array(path: Path) -> np.ndarray:
    """Read a whole stored array."""
    return slice_array(open_array(path), ..., path)


def slice_array(handle: Any, slices: Any, path: Path) -> np.ndarray:
    """Decompress a part of an opened array; damage met on the way is a UserError that names `path`."""
    try:
        return handle[slices]
    except (RuntimeError, ValueError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, reason: object) -> UserError:
    """Return the error for a stored file that cannot be read."""
    what = "the file is missing" if not path.is_file() else f"the stored array is damaged ({reason})"
    return UserError(what, where=path, mend="preprocess again: what is damaged is made anew")


def smallest_float(array: np.ndarray) -> np.ndarray:
    """Return float data as float16 if all magnitudes are small enough for it, else as float32."""
    largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))
    return array.astype(np.float16 if largest <= HALF_PRECISION_LIMIT else np.float32, copy=False)


def smallest_label(label: np.ndarray) -> np.ndarray:
    """Return a label map as int8 if its values fit, else as int16."""
    return label.astype(np.int8 if label.max(initial=0) <= 127 else np.int16, copy=False)


def native(array: np.ndarray) -> np.ndarray:
    """Return float32 data in the smallest of uint8, int16, uint16 that keeps every value, else unchanged."""
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    for kind in (np.uint8, np.int16, np.uint16):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            whole = array.astype(kind)
            return whole if np.array_equal(whole, array) else array
    return array
