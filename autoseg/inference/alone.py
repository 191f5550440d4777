"""One prediction at a time into a folder: two would mix the outputs of their settings and each other's record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import UserError
from autoseg.lock import locked_where_writable

LOCK_FILE = ".predicting.lock"  # hidden, so that nobody takes it for an image or a prediction


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Hold an output folder; UserError if another prediction writes to it.

    The lock lies within, since the folder around may be read-only. Where nothing may be written, nobody is at work,
    and whoever is to write is told of it.
    """
    refusal = UserError(
        "another prediction is at work in this folder",
        where=output,
        mend="wait until it has ended, or choose another output folder",
    )
    with locked_where_writable(output / LOCK_FILE, refusal):
        yield
