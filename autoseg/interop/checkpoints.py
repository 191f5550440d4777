"""Reading nnU-Net's checkpoints (pickles) without running what they hold."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoseg.errors import UserError

# Beside tensors and plain types, which torch allows by itself, nnU-Net's checkpoints hold logged numpy numbers.
NUMBERS = ("Bool", "Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64")
NUMBERS = (*NUMBERS, "Float16", "Float32", "Float64")
REFUSALS = ("GLOBAL", "allowlisted")  # what torch's careful reader says of things it will not make
SCALAR = np.float64(0).__reduce__()[0]  # by which numpy's numbers are pickled; its module has another name in numpy 1
ALLOWED = [
    (SCALAR, "numpy._core.multiarray.scalar"),  # written by numpy 2
    (SCALAR, "numpy.core.multiarray.scalar"),  # written by numpy 1
    np.dtype,
    *(getattr(np.dtypes, f"{name}DType") for name in NUMBERS),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; tensors are on the CPU and, where the format allows, mapped from the file.

    Only tensors, plain Python types and numpy numbers are read: the unpickler refuses everything else before it is
    imported or called, and the checkpoint with it.
    """
    _check_intact(path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise UserError("the checkpoint does not exist", where=path) from None
    except Exception as error:  # a damaged or hostile file can raise anything
        if not any(word in str(error) for word in REFUSALS):
            raise UserError(f"not a readable checkpoint ({_reason(error)})", where=path, mend="copy it again") from None
        raise UserError(
            f"the checkpoint asks for more than weights and plain values, so it was not read ({_reason(error)})",
            where=path,
            mend="if you trust who made it, load it with nnunetv2 and save `network_weights`, `init_args`, "
            "`trainer_name` and `inference_allowed_mirroring_axes` alone with torch.save",
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), Mapping):
        raise UserError("the file has no field network_weights", where=path, mend="give a checkpoint of nnU-Net v2")
    if not isinstance(content.get("init_args"), Mapping):
        raise UserError("the file has no field init_args", where=path, mend="give a checkpoint of nnU-Net v2")
    return content


def _check_intact(path: Path) -> None:
    """Raise UserError for a zip file with changed bytes; torch does not compare its checksums."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return  # an older checkpoint, which has no checksums; what is no checkpoint at all is told later
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged or hostile file can raise anything
        raise UserError(f"not a readable checkpoint ({_reason(error)})", where=path, mend="copy it again") from None
    if damaged is not None:
        raise UserError(
            f"not a readable checkpoint ({damaged!r} in it does not match its checksum)",
            where=path,
            mend="copy it again",
        )


def _reason(error: Exception) -> str:
    """Return what is wrong in one line; torch's own text advises to read the file with less care."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in (*REFUSALS, "Unsupported operand"))]
    line = (telling or lines or [type(error).__name__])[0]
    return line.rpartition("WeightsUnpickler error: ")[2].split(". ")[0][:200]
