"""A watch over work that another thread cannot hand back: a step that does not end is told while it lasts.

A step of the network cannot be stopped from outside without losing the run, so nothing is ended: who looks after the
command reads what it is at, and decides.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.deadlines import STEP_VARIABLE, step_seconds
from autoseg.interpreter_watch import InterpreterWatch

LOOK_SECONDS = 5.0  # between two looks
PAUSE_SECONDS = 30.0  # by which a look comes late if the whole process was stopped, as by Ctrl-Z

log = logging.getLogger(__name__)


@dataclass
class _Work:
    """One piece of work, within those that were begun before it."""

    text: str
    kind: str | None
    silent: bool
    begun: float


@dataclass
class _Worker:
    """What a thread is at, outermost first, and when it last began or ended something."""

    works: list[_Work] = field(default_factory=list)
    heard: float = 0.0
    told: int = 0  # how often this silence was told


@dataclass
class _Usual:
    """How long work of one kind took so far."""

    count: int = 0
    seconds: float = 0.0


_workers: dict[int, _Worker] = {}  # by thread
_usual: dict[str, _Usual] = {}
_starting = threading.Lock()
_watch: threading.Thread | None = None
_interpreter: InterpreterWatch | None = None


@contextmanager
def watched(text: str, *, kind: str | None = None, silent: bool = False) -> Iterator[None]:
    """Note that this thread is at some work; if it neither ends nor begins anything for long, a warning tells.

    How long is long depends on how long work of the same `kind` took in this process, see `deadlines.step_seconds`.
    `silent` work, such as waiting for others that are told of themselves, is not told.
    """
    _start()
    worker = _workers.setdefault(threading.get_ident(), _Worker())
    begun = worker.heard = time.monotonic()
    worker.told = 0
    worker.works.append(_Work(text, kind, silent, begun))
    _note()
    try:
        yield
        if kind is not None:  # work that failed says nothing about how long it takes
            usual = _usual.setdefault(kind, _Usual())
            usual.count, usual.seconds = usual.count + 1, usual.seconds + time.monotonic() - begun
    finally:
        worker.works.pop()
        worker.heard, worker.told = time.monotonic(), 0
        if not worker.works:
            _workers.pop(threading.get_ident(), None)
        _note()


def _start() -> None:
    """Have one thread look on, for as long as the process lives; in a forked process, another one."""
    global _watch, _interpreter
    if _watch is not None and _watch.is_alive():
        return
    with _starting:
        if _watch is None or not _watch.is_alive():
            seconds = step_seconds(None)  # a wrong setting is told here, to the command
            _interpreter = InterpreterWatch(seconds, LOOK_SECONDS)
            _interpreter.wind()
            _watch = threading.Thread(target=_look_on, args=[_interpreter], name="autoseg-watch", daemon=True)
            _watch.start()


def _note() -> None:
    """Leave word of what all threads are at, for when none of them can tell any more."""
    assert _interpreter is not None
    workers = list(_workers.items())
    _interpreter.note([(thread, ", ".join([work.text for work in worker.works])) for thread, worker in workers])


def _look_on(interpreter: InterpreterWatch) -> None:
    looked = time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        interpreter.wind()
        before, looked = looked, time.monotonic()
        pause = looked - before - LOOK_SECONDS
        for thread, worker in list(_workers.items()):
            if pause > PAUSE_SECONDS:
                worker.heard += pause
            _tell(thread, worker, looked)


def _tell(thread: int, worker: _Worker, now: float) -> None:
    """Say what a thread is at if it was silent for too long; ever more rarely while that lasts."""
    works = list(worker.works)
    if not works or works[-1].silent:
        return
    usual = _usual.get(works[-1].kind)
    mean = usual.seconds / usual.count if usual else None
    silence = now - worker.heard
    if silence < step_seconds(mean) * 2**worker.told:
        return
    worker.told += 1
    usually = "" if mean is None else f" (usually {mean:.2g} s)"
    log.warning(
        "%s: no sign of life for %.0f s%s%s. Nothing is stopped; Ctrl-C ends the command, in training the second "
        "one at once. If a step may take longer, set %s",
        ", ".join(work.text for work in works), silence, usually, _place(thread), STEP_VARIABLE,
    )  # fmt: skip


def _place(thread: int) -> str:
    """Return where in the program a thread is."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    code = frame.f_code
    return f"; it is at {code.co_name}, {Path(code.co_filename).name}:{frame.f_lineno}"
