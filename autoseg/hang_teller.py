"""The process that tells of an interpreter that gives no sign of life; it loads the standard library only.

Its standard input is the pipe that `interpreter_watch` opens: it ends when nobody holds it any more.
"""

import os
import re
import select
import sys
import time

BLOCK = 1 << 16
SIGN = 8  # bytes of the signs of life, at the beginning of the shared memory
PAUSE_SECONDS = 30.0  # by which a look comes late if the whole machine stood still
THREAD = re.compile(r"[Tt]hread (0x[0-9a-f]+)[^\n]*\n  File \"([^\"]*)\", line (\d+) in ([^\n]*)")


class Silence:
    """How long a process at work gave no sign of life; pauses of it, or of the whole machine, do not count."""

    def __init__(self, seconds: float, look_seconds: float):
        """Tell once after `seconds`, where one looks every `look_seconds`."""
        self._seconds = seconds
        self._late = look_seconds + PAUSE_SECONDS
        self._signs = b""
        self._since = self._looked = float("-inf")

    def look(self, now: float, signs: bytes, *, waits: bool) -> float | None:
        """Return how long it lasts, when that is to be told; `waits`: the process is stopped or has no work of ours."""
        late, self._looked = now - self._looked > self._late, now
        if late or waits or signs != self._signs:
            self._signs, self._since = signs, now
        elif now - self._since >= self._seconds:
            silence, self._since = now - self._since, float("inf")  # told once
            return silence
        return None


def main(
    shared: int, process: int, seconds: float, look_seconds: float, asking: int, folder: str, variable: str
) -> None:
    """Look for signs of life of the process, and tell where there is none, until it or its pipe ends."""
    silence = Silence(seconds, look_seconds)
    while True:
        if select.select([0], [], [], look_seconds)[0] and not os.read(0, BLOCK):
            return
        if os.getppid() != process:
            return
        signs, works = _memory(shared)
        lasts = silence.look(time.monotonic(), signs, waits=not works or _stopped(process))
        if lasts is None:
            continue
        os.kill(process, asking)
        places = _places(2 * look_seconds)
        if _memory(shared)[0] == signs:
            file = os.path.join(folder, f"autoseg-hang-{process}.txt")
            told = message(places, works, lasts, process, variable) + _kept(file, f"{works}\n\n{places}")
            os.write(2, f"{chr(10) if os.isatty(2) else ''}warning: {told}\n".encode())


def _memory(shared: int) -> tuple[bytes, str]:
    """Return the signs of life, and what the threads are at."""
    return os.pread(shared, SIGN, 0), os.pread(shared, 1 << 12, SIGN).partition(b"\0")[0].decode("utf-8", "replace")


def _stopped(process: int) -> bool:
    """Tell whether a process is stopped as a whole, as by Ctrl-Z or a debugger."""
    with open(f"/proc/{process}/stat", "rb") as handle:
        return handle.read().rpartition(b") ")[2][:1] in b"Tt"


def _places(quiet: float) -> str:
    """Return what comes through the pipe until it is quiet."""
    places = b""
    while select.select([0], [], [], quiet)[0] and (more := os.read(0, BLOCK)):
        places += more
    return places.decode("utf-8", "replace")


def message(places: str, works: str, silence: float, process: int, variable: str) -> str:
    """Return what is said: what the threads are at and where, as far as they left word."""
    at = {
        int(thread, 16): f" (in {name}, {os.path.basename(file)}:{line})"
        for thread, file, line, name in THREAD.findall(places)
    }
    pairs = [line.partition(" ")[::2] for line in works.splitlines()]
    doing = "; ".join(work + at.get(int(thread, 16), "") for thread, work in pairs)
    return (
        f"{doing}: no sign of life of the whole process for {silence:.0f} s; compiled code holds the interpreter. "
        f"Nothing is stopped; Ctrl-C may not be heard, `kill -9 {process}` ends the process, and the same command goes "
        f"on from what was finished. If that may take longer, set {variable}"
    )


def _kept(file: str, text: str) -> str:
    """Write where every thread is to a file of our own, and return the sentence that names it."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            handle.write(text)
    except OSError:  # no space, or there from an earlier hang
        return ""
    return f". Where every thread is stands in {file}"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
