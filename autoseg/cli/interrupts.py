"""Ctrl-C while a command is still being loaded, or is over: one line or none, and the exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
LINE = b"interrupted; nothing was begun\n"


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """End the process with 130 and one line at Ctrl-C within: an exception might end in an import that hides it.

    Where SIGINT is ignored or handled by somebody else, or outside of the main thread, it stays as it is.
    """
    ours = _takes(_leave)
    yield
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_with(code: int) -> NoReturn:
    """Leave with an exit code that Ctrl-C does not change while the interpreter ends: all is done and told."""

    def at_once(number: int, frame: FrameType | None) -> None:
        sys.stdout.flush()
        os._exit(code)

    _takes(at_once)
    sys.exit(code)


def _takes(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Have `handler` answer Ctrl-C, if Python's own does so now, and tell whether it will."""
    try:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread
        return False
    return ours


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, LINE)
    os._exit(INTERRUPTED)
