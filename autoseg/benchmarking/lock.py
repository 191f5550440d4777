"""One process at a time on a campaign; the operating system frees the lock of one that dies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; UserError if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "another process works on this campaign", where=folder, mend="wait for it, or choose another --name"
            ) from None
        yield
