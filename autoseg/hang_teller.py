"""The process that tells of an interpreter that gives no sign of life; it loads the standard library only.

Its standard input is the pipe that `interpreter_watch` opens: it ends when nobody holds it any more.
"""

import os
import re
import select
import sys

BLOCK = 1 << 16
SIGN = 8  # bytes of the signs of life, at the beginning of the shared memory
THREAD = re.compile(r"Thread (0x[0-9a-f]+)[^\n]*\n  File \"([^\"]*)\", line (\d+) in ([^\n]*)")


def main(shared: int, process: str, quiet: float, folder: str, variable: str) -> None:
    """Wait for the places of all threads, which come when the clock has run down, and tell, until the pipe ends."""
    while places := os.read(0, BLOCK):
        signs = os.pread(shared, SIGN, 0)
        while select.select([0], [], [], quiet)[0]:
            if not (more := os.read(0, BLOCK)):
                return
            places += more
        works = os.pread(shared, 1 << 12, SIGN).partition(b"\0")[0].decode("utf-8", "replace")
        # a sign of life: the process had been stopped as a whole, as by Ctrl-Z, and goes on; no work: none of ours
        if works and os.pread(shared, SIGN, 0) == signs:
            text = places.decode("utf-8", "replace")
            file = os.path.join(folder, f"autoseg-hang-{process}.txt")
            told = message(text, works, process, variable) + _kept(file, f"{works}\n\n{text}")
            os.write(2, f"{chr(10) if os.isatty(2) else ''}warning: {told}\n".encode())


def message(places: str, works: str, process: str, variable: str) -> str:
    """Return what is said: what the threads are at and where, as far as they left word."""
    at = {
        int(thread, 16): f" (in {name}, {os.path.basename(file)}:{line})"
        for thread, file, line, name in THREAD.findall(places)
    }
    pairs = [line.partition(" ")[::2] for line in works.splitlines()]
    doing = "; ".join(work + at.get(int(thread, 16), "") for thread, work in pairs)
    hours, minutes, seconds = map(float, re.findall(r"[\d.]+", places.partition("\n")[0]))
    since = 3600 * hours + 60 * minutes + seconds
    return (
        f"{doing}: no sign of life of the whole process for {since:.0f} s; compiled code holds the interpreter. "
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
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), *sys.argv[4:])
