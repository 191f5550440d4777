"""Work that a command does in its own process, which it might end: repeated, the command does it in a child.

A child takes most of a second to start, longer than small data take to be read; that is paid only after a process died.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from autoseg.errors import UserError
from autoseg.lock import locked
from autoseg.storage import content_hash, temporary_folder


@dataclass
class Guard:
    """What is known of some work: whether a process died of it, and whether another one may."""

    died: bool = False
    again: bool = False


@contextmanager
def guarded(*work: Any) -> Iterator[Guard]:
    """Note for the time of some work, known by its content, that this process is at it; tell if an earlier one died.

    The note lies in the folder of temporary files; where none can be written, nothing is known. It stays if the process
    ends within, or if `again` is set. A SIGKILL within looks like a crash: it is that of a system short of memory, too,
    for which the work may be the cause, and if it was not, only the start of a child is lost.
    """
    place = temporary_folder()
    if place is None:
        yield Guard()
        return
    file = place / f"autoseg-{getattr(os, 'getuid', int)()}-{content_hash(*work)[:32]}.at-work"
    guard = Guard(died=file.is_file() and not file.is_symlink())
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(file, UserError("another command is at it")))
        except (OSError, UserError):
            guard.died = False
        guard.again = guard.died
        try:
            yield guard
        finally:
            stack.close()
            if guard.again:
                with suppress(OSError):
                    file.touch(mode=0o600)
