"""How many threads a step on the CPU runs fastest on: all of them, or half where other work holds the cores.

Threads of one operation wait for each other. When another process takes a core, two threads on two cores were ten
times slower than one (measured: 3.0 s against 0.47 s per step), so the better number is timed and timed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SAMPLES = 3  # steps timed per candidate, after one to get going
AGAIN_SECONDS = 45.0


def candidates(device: torch.device) -> list[int]:
    """Return the thread counts worth timing on a device, the largest first."""
    most = torch.get_num_threads()
    return sorted({most, max(1, most // 2)}, reverse=True) if device.type == "cpu" else [most]


class ThreadCount:
    """Times the steps of a loop with each candidate in turn, keeps the fastest, and looks again from time to time."""

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        apply: Callable[[int], None] = torch.set_num_threads,
    ):
        self.candidates = sorted({most, max(1, most // 2)}, reverse=True)
        self._clock, self._apply = clock, apply
        self._times: dict[int, list[float]] = {}
        self._trying: list[int] = []
        self.current = most
        self._restart()

    def after_step(self) -> None:
        """Tell that a step has ended."""
        now = self._clock()
        taken, self._last = now - self._last, now
        if not self._trying:
            if len(self.candidates) > 1 and now - self._chosen_at > AGAIN_SECONDS:
                self._restart()
            return
        times = self._times.setdefault(self.current, [])
        times.append(taken)
        if len(times) <= SAMPLES:
            return
        self._trying.pop(0)
        if self._trying:
            self._use(self._trying[0])
            return
        # The first step of a candidate is left out: it starts the threads.
        self._use(min(self._times, key=lambda count: min(self._times[count][1:])))
        self._chosen_at = now

    def _restart(self) -> None:
        self._times.clear()
        self._trying = list(self.candidates)
        self._last = self._chosen_at = self._clock()
        self._use(self._trying[0])

    def _use(self, count: int) -> None:
        if count != self.current:
            self._apply(count)
        self.current = count
