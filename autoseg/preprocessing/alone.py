"""One command at a time at what a data set's preprocessing leaves: two would delete each other's files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import UserError
from autoseg.lock import locked_where_writable

LOCK_FILE = ".preprocessing.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a data set's fingerprint, cache and stores; UserError if another command is at work there.

    Where nothing may be written, nobody is at work, and whoever is to write is told of it.
    """
    refusal = UserError(
        f"another command is at work in {folder}",
        mend="wait until it has ended, then repeat this one: what it finished is taken over",
    )
    with locked_where_writable(folder / LOCK_FILE, refusal):
        yield
