"""How long work may take: a case, generous and longer for large files, and a step of the network, by the usual one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autoseg.errors import UserError

VARIABLE = "AUTOSEG_CASE_SECONDS"
CASE_SECONDS = 3600.0  # for a case of any size
BYTES_PER_SECOND = 2**18  # a second more for each; far below what any stage takes in
STEP_VARIABLE = "AUTOSEG_STEP_SECONDS"
FIRST_STEP_SECONDS = 600.0  # without a sign of life, where nothing is known: compiling, a slow disk, a huge image
STEP_SECONDS = 120.0  # that any step may take
USUAL_STEPS = 20  # so many times as long as usual a step may take
START_SECONDS = 600.0  # for a worker process to start: interpreter and imports, at worst from a slow network disk


def case_seconds(size: int) -> float:
    """Return the deadline in seconds of a case whose files have `size` bytes; the environment variable replaces it."""
    return _given(VARIABLE, "a case", 7200) or CASE_SECONDS + size / BYTES_PER_SECOND


def step_seconds(usual: float | None) -> float:
    """Return the silence in seconds after which a step that `usual`ly takes so long is told to hang.

    None: it is not known yet. The environment variable replaces it.
    """
    given = _given(STEP_VARIABLE, "a step of the network", 1800)
    return given or (FIRST_STEP_SECONDS if usual is None else max(STEP_SECONDS, USUAL_STEPS * usual))


def _given(variable: str, of: str, such_as: int) -> float | None:
    """Return the seconds that an environment variable gives, None if it is not set."""
    given = os.environ.get(variable)
    if not given:
        return None
    with suppress(ValueError):
        if (seconds := float(given)) > 0:
            return seconds
    raise UserError(
        f"{given!r} is no number of seconds above 0",
        where=f"environment variable {variable}",
        mend=f"set it to the longest time that {of} may take, such as {such_as}, or to inf for no limit",
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
