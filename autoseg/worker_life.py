"""How a worker process lives: deaf to Ctrl-C, which is its parent's business, not longer than that, on its modules."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection as pipes

SAFE_PATH = "PYTHONSAFEPATH"
ORPHANED = 1  # exit status of a worker whose parent is gone; nobody reads it


@contextmanager
def interrupts_kept_from_children() -> Iterator[None]:
    """Have processes that this thread starts begin with SIGINT blocked, so that Ctrl-C does not meet their imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    with modules_of_this_process():
        resource_tracker.ensure_running()  # it unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def modules_of_this_process() -> Iterator[None]:
    """Have Python processes that are started within look for modules where this one does, and nowhere else.

    What multiprocessing starts looks into the current folder first: a `multiprocessing.py` in a data set would run.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def live_as_worker() -> None:
    """Begin as a worker: ignore Ctrl-C, which reaches the whole group, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    if parent is not None:  # None: called by a test, in no worker
        _kill_at_closing(parent.sentinel)
        threading.Thread(target=_follow, args=(parent.sentinel,), name="autoseg-parent", daemon=True).start()


def _follow(sentinel: int) -> None:
    pipes.wait([sentinel])
    os._exit(ORPHANED)


def _kill_at_closing(sentinel: int) -> None:
    """Ask Linux to kill this process when the parent's end of the pipe closes: a thread waits for compiled code."""
    with suppress(ImportError, AttributeError, OSError):  # not Linux: the thread alone
        import fcntl

        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
