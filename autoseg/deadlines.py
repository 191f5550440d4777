"""How long one case may take: generous, longer for large files, so that a hang ends and work does not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autoseg.errors import UserError

VARIABLE = "AUTOSEG_CASE_SECONDS"
CASE_SECONDS = 3600.0  # for a case of any size
BYTES_PER_SECOND = 2**18  # a second more for each; far below what any stage takes in
START_SECONDS = 600.0  # for a worker process to start: interpreter and imports, at worst from a slow network disk


def case_seconds(size: int) -> float:
    """Return the deadline in seconds of a case whose files have `size` bytes; the environment variable replaces it."""
    given = os.environ.get(VARIABLE)
    if not given:
        return CASE_SECONDS + size / BYTES_PER_SECOND
    with suppress(ValueError):
        if (seconds := float(given)) > 0:
            return seconds
    raise UserError(
        f"{given!r} is no number of seconds above 0",
        where=f"environment variable {VARIABLE}",
        mend="set it to the longest time that a case may take, such as 7200, or to inf for no limit",
    )


def file_bytes(paths: Iterable[Path | None]) -> int:
    """Return the bytes of files and of the files in folders; what is missing has none."""
    return sum(_bytes(path) for path in paths if path is not None)


def _bytes(path: Path) -> int:
    with suppress(OSError):
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return path.stat().st_size
    return 0
