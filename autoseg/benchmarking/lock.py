"""One process at a time on a campaign."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import UserError
from autoseg.lock import locked

LOCK_FILE = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; UserError if another process has it."""
    refusal = UserError(
        "another process works on this campaign", where=folder, mend="wait for it, or choose another --name"
    )
    with locked(folder / LOCK_FILE, refusal):
        yield
