"""A watch over compiled code that never lets go of the interpreter: no thread here can tell of it, a process can.

The watch thread (`watching`) winds up a clock that needs no interpreter, again and again. If it runs down, all threads'
places go through a pipe to a small process of its own, `hang_teller`, which tells the user. That is done on Linux only.
"""

from __future__ import annotations

import atexit
import faulthandler
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from autoseg.deadlines import STEP_VARIABLE

PAGE = 4096  # bytes of the memory that is shared: signs of life (8 bytes), then what the threads are at
SIGN = 8


class InterpreterWatch:
    """The clock, and the process that tells when it has run down; it does nothing where there can be none."""

    def __init__(self, seconds: float, look_seconds: float):
        """Allow a silence of some seconds, where a sign of life is given every `look_seconds`."""
        self._memory: mmap.mmap | None = None
        self._seconds = seconds + look_seconds
        self._signs = 0
        if not hasattr(os, "memfd_create"):
            return
        with suppress(OSError):  # without memory, files or processes left, only this watch is missing
            self._begin(look_seconds)

    def _begin(self, look_seconds: float) -> None:
        shared = os.memfd_create("autoseg-watch")
        try:
            os.truncate(shared, PAGE)
            teller = str(Path(__file__).with_name("hang_teller.py"))
            words = map(str, (shared, os.getpid(), 2 * look_seconds, tempfile.gettempdir(), STEP_VARIABLE))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", teller, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                pass_fds=[shared], start_new_session=True, bufsize=0,
            )  # fmt: skip
            self._pipe = self._process.stdin.fileno()
            os.set_blocking(self._pipe, False)  # a reader that stands still must not hold anybody up
            self._memory = mmap.mmap(shared, PAGE)
        finally:
            os.close(shared)
        atexit.register(self.close, os.getpid())

    def wind(self) -> None:
        """Give a sign of life, and have it told if the next one does not come."""
        if (memory := self._memory) is None:
            return
        self._signs += 1
        memory[:SIGN] = self._signs.to_bytes(SIGN, "little")
        if self._seconds < threading.TIMEOUT_MAX:  # inf is no limit
            faulthandler.dump_traceback_later(self._seconds, file=self._pipe)

    def note(self, works: list[tuple[int, str]]) -> None:
        """Leave word of what threads are at: pairs of a thread and its work."""
        if (memory := self._memory) is None:
            return
        text = "\n".join(f"{thread:#x} {work}" for thread, work in works).encode("utf-8", "replace")
        text = text[: PAGE - SIGN - 1] + b"\0"
        memory[SIGN : SIGN + len(text)] = text

    def close(self, process: int) -> None:
        """End the process that tells, at the end of the one that began it."""
        if self._memory is None or os.getpid() != process:  # a forked one has nothing to end
            return
        self._memory = None
        faulthandler.cancel_dump_traceback_later()
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
