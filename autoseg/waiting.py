"""Waiting that is not silent: after a while without news it is told who is at work on what, and since when."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from autoseg.watching import watched

SILENCE_SECONDS = 120.0  # after which it is told what every worker is doing, if none finished anything

log = logging.getLogger(__name__)


def tell_silence(stage: str, busy: Sequence[tuple[str, float, str]], seconds: float, unit: str = "case") -> None:
    """Say what every worker is doing: its work, when it began (s, monotonic), and a remark."""
    now = time.monotonic()
    doing = "; ".join(f"{unit} {work} for {now - since:.0f} s{remark}" for work, since, remark in busy)
    log.warning("%s: no %s was finished for %g s; at work: %s", stage, unit, seconds, doing or "nobody")


class AtWork:
    """What the threads of a stage are doing; `describe` turns a piece of work into words when they are needed."""

    def __init__(self, stage: str, *, unit: str = "case", describe: Callable[[Any], str] = str):
        self._stage, self._unit, self._describe = stage, unit, describe
        self._doing: dict[int, tuple[Any, float]] = {}  # by thread

    @contextmanager
    def on(self, work: Any) -> Iterator[None]:
        """Note that this thread is at this piece of work."""
        own = threading.get_ident()
        self._doing[own] = work, time.monotonic()
        try:
            yield
        finally:
            del self._doing[own]

    def result(self, future: Future) -> Any:
        """Return the result of a future; while there is none, what is being done is told, ever more rarely."""
        begin, pause = time.monotonic(), SILENCE_SECONDS
        with watched(self._stage, silent=True):
            while not wait([future], pause).done:
                busy = [(self._describe(work), since, "") for work, since in list(self._doing.values())]
                tell_silence(self._stage, busy, round(time.monotonic() - begin), self._unit)
                pause *= 2
        return future.result()
