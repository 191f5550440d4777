"""Run a command and measure it with all its descendants: wall time, processor time, peak memory.

The standard library alone, so that the measuring process stays small: Linux counts the memory of a parent at the moment
of `exec` in the child's `ru_maxrss`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER = "ANSWER "  # what begins the line of a child's answer
INTERVAL = 0.05  # seconds between two looks at the memory
GRACE = 10.0  # seconds that descendants may live on when the command has ended
RISE = 1.01  # of what is resident in the processes, by which it is looked closely at once
SHARE = 0.05  # of the time that may go into what is dearer to read
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command took. Memory in bytes."""

    seconds: float
    cpu_seconds: float  # user and system, of all descendants
    tree_bytes: int  # highest sampled memory of all processes together, what they share counts once
    largest_bytes: int  # highest `ru_maxrss` of one process


class CommandFailed(RuntimeError):
    """The command ended with an error, or did not end."""


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Make this process the parent of descendants whose parent ends, so that none escapes the accounts (Linux)."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library:
        library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if library:
            library.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def run_measured(command: Sequence[str], environment: Mapping[str, str], *, timeout: float) -> tuple[Usage, str]:
    """Run a command; returns what it took and its standard output. Raises CommandFailed."""
    with adopting_orphans(), tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), stdout=out, stderr=errors, start_new_session=True)
        sampler = _Sampler(process.pid)
        timer = threading.Timer(timeout, _kill_group, [process.pid])
        sampler.start()
        timer.start()
        try:
            status, usages = _wait(process.pid)
            seconds = time.perf_counter() - began
            usages += _reap_rest(process.pid)
        except BaseException:
            _kill_group(process.pid)
            raise
        finally:
            timer.cancel()
            sampler.stop()
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
        if process.returncode:
            errors.seek(0)
            out.seek(0)
            tail = (out.read()[-1500:] + errors.read()[-3000:]).decode(errors="replace")
            reason = f"after {timeout:g} s" if seconds >= timeout else f"exit code {process.returncode}"
            raise CommandFailed(f"{' '.join(command)}: {reason}\n{tail}")
        out.seek(0)
        text = out.read().decode(errors="replace")
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    largest = max(usage.ru_maxrss for usage in usages) * 1024
    return Usage(seconds, cpu, sampler.peak, largest), text


def parse_answer(text: str) -> dict[str, Any]:
    """Return the last answer that a child printed among other lines. Raises CommandFailed if there is none."""
    lines = [line for line in text.splitlines() if line.startswith(ANSWER)]
    if not lines:
        raise CommandFailed(f"no answer among what the child printed: ...{text[-500:]}")
    try:
        answer = json.loads(lines[-1][len(ANSWER) :])
    except json.JSONDecodeError as error:
        raise CommandFailed(f"the answer is not JSON ({error}): {lines[-1][:200]}") from None
    if not isinstance(answer, dict):
        raise CommandFailed(f"the answer is no object: {lines[-1][:200]}")
    return answer


def descendants(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return a process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.append(current)
        with contextlib.suppress(OSError):  # it may end while one looks
            for task in os.listdir(proc / str(current) / "task"):
                waiting += map(int, (proc / str(current) / "task" / task / "children").read_text().split())
    return found


def tree_memory(pids: Sequence[int], proc: Path = Path("/proc")) -> int:
    """Return the resident bytes of some processes together; what they share counts once.

    Memory of their own and shared memory are divided among those that map it (PSS); of mapped files, which are mostly
    libraries and shared with other programs of the machine, too, the largest process counts.
    """
    own, files = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            fields = _kilobytes(proc / str(pid) / "smaps_rollup")
            mapped = fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0)
            own += 1024 * mapped
            of_files = _kilobytes(proc / str(pid) / "status").get("RssFile", 0)
            files = max(files, 1024 * of_files)
    return own + files


def resident_bytes(pids: Sequence[int], proc: Path = Path("/proc")) -> int:
    """Return the sum of what is resident in each of some processes: quick to read, shared pages count several times."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int((proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _kilobytes(file: Path) -> dict[str, int]:
    """Return the fields of a file of /proc that are given in kB."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return {words[0].removesuffix(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _group(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)


class _Sampler(threading.Thread):
    """Looks at the memory of a tree of processes until it is stopped; `peak` is what it saw.

    What is resident, summed, counts shared pages several times and so is never below the memory: only where it is above
    the peak can a new one be. It is no measure itself: forked children let it rise by pages that are there once. A
    close look is dear: the next one waits until the sum has risen, or for a time in which looking has its `SHARE`.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peak, self._ended = pid, 0, threading.Event()

    def run(self) -> None:
        """Look, and look closely where more may be in use than before."""
        own, rested, seen = os.getpid(), 0.0, 0
        while not self._ended.is_set():
            pids = [pid for pid in descendants(own) if _group(pid) == self.pid]  # orphans are below this one
            began = time.perf_counter()
            resident = resident_bytes(pids)
            if resident > self.peak and (began >= rested or resident > RISE * seen):
                seen = resident
                self.peak = max(self.peak, tree_memory(pids))
                ended = time.perf_counter()
                rested = ended + (ended - began) / SHARE
            self._ended.wait(INTERVAL)

    def stop(self) -> None:
        """End the looking."""
        self._ended.set()
        self.join()


def _wait(pid: int) -> tuple[int, list[Any]]:
    """Wait for a child; returns its status and the usages of it and of the orphans that ended before."""
    usages = []
    while True:
        ended, status, usage = os.wait4(-pid, 0)  # of its process group; a benchmark's child has its own
        usages.append(usage)
        if ended == pid:
            return status, usages


def _reap_rest(group: int) -> list[Any]:
    """Wait for orphans; those that live on too long are killed."""
    usages, killed = [], False
    end = time.monotonic() + GRACE
    while True:
        try:
            ended, _, usage = os.wait4(-group, os.WNOHANG)
        except ChildProcessError:
            return usages
        if ended:
            usages.append(usage)
            continue
        if time.monotonic() > end and not killed:
            _kill_group(group)
            killed = True
        time.sleep(0.01)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
