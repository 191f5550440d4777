"""One process at a time at a place; the operating system frees the lock of one that dies."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from autoseg.errors import UserError
from autoseg.storage import WRITE_MENDS

HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})  # how systems say that it is taken


@contextmanager
def locked(file: Path, refusal: UserError) -> Iterator[None]:
    """Hold the lock `file`, which is deleted afterwards; raises `refusal` if another process, or thread, has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquired(file, refusal)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file: an empty one stays
            file.unlink()
        handle.close()


@contextmanager
def locked_where_writable(file: Path, refusal: UserError) -> Iterator[None]:
    """Do as `locked`; where nothing may be written, nobody is at work, and whoever is to write is told of it."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(file, refusal))
        except OSError as error:
            if error.errno not in WRITE_MENDS:
                raise
        yield


def _acquired(file: Path, refusal: UserError) -> IO[str]:
    while True:
        handle = file.open("a")
        try:
            _lock(handle)
            if os.path.samestat(os.fstat(handle.fileno()), file.stat()):
                return handle
        except FileNotFoundError:
            pass  # who had it deleted it in between, so that ours is the lock of nothing
        except OSError as error:
            if error.errno not in HELD:  # a file system without locks
                return handle
            handle.close()
            raise refusal from None
        handle.close()


def _lock(handle: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
