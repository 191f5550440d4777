"""Ctrl-C while a command is still being loaded: nothing is begun, so one line and the exit code are all there is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
LINE = b"interrupted; nothing was begun\n"


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """End the process with 130 and one line at Ctrl-C within: an exception might end in an import that hides it.

    Where SIGINT is ignored or handled by somebody else, or outside of the main thread, it stays as it is.
    """
    try:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, _leave)
    except ValueError:  # not the main thread
        ours = False
    yield
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, LINE)
    os._exit(INTERRUPTED)
