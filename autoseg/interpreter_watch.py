"""A watch over compiled code that never lets go of the interpreter: no thread here can tell of it, a process can.

The watch thread (`watching`) leaves a sign of life in shared memory, again and again. A small process of its own,
`hang_teller`, looks for it; if none comes for long, it asks by a signal for the places of all threads, which come
through a pipe, and tells the user. That is done on Linux only.

The threads are asked only then: to list what threads that run are at, without the interpreter's lock, now and then ends
the process without a word, as `faulthandler.dump_traceback_later` did here.
"""

from __future__ import annotations

import atexit
import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from autoseg.deadlines import STEP_VARIABLE

PAGE = 4096  # bytes of the memory that is shared: signs of life (8 bytes), then what the threads are at
SIGN = 8
PLACES_SIGNAL = getattr(signal, "SIGRTMIN", 0) + 5  # nobody else's: SIGUSR1 and 2 are those of clusters


class InterpreterWatch:
    """The signs of life, and the process that tells when none come; it does nothing where there can be none."""

    def __init__(self, seconds: float, look_seconds: float):
        """Allow a silence of some seconds, where a sign of life is given every `look_seconds`."""
        self._memory: mmap.mmap | None = None
        self._signs = 0
        if not hasattr(os, "memfd_create"):
            return
        with suppress(OSError):  # without memory, files or processes left, only this watch is missing
            self._begin(seconds + look_seconds, look_seconds)

    def _begin(self, seconds: float, look_seconds: float) -> None:
        shared = os.memfd_create("autoseg-watch")
        try:
            os.truncate(shared, PAGE)
            teller = str(Path(__file__).with_name("hang_teller.py"))
            words = (shared, os.getpid(), seconds, look_seconds, PLACES_SIGNAL, tempfile.gettempdir(), STEP_VARIABLE)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", teller, *map(str, words)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[shared], start_new_session=True, bufsize=0,
            )  # fmt: skip
            self._pipe = self._process.stdin.fileno()
            os.set_blocking(self._pipe, False)  # a reader that stands still must not hold anybody up
            faulthandler.register(PLACES_SIGNAL, file=self._pipe)
            self._memory = mmap.mmap(shared, PAGE)
        finally:
            os.close(shared)
        atexit.register(self.close, os.getpid())

    def wind(self) -> None:
        """Give a sign of life; if the next one does not come, that is told."""
        if (memory := self._memory) is not None:
            self._signs += 1
            memory[:SIGN] = self._signs.to_bytes(SIGN, "little")

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
        faulthandler.unregister(PLACES_SIGNAL)
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
