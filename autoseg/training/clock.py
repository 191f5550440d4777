"""How far a run is: by steps, by the time that it may take, or by the work that training itself may be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def work_clock(device: torch.device, threads: int) -> Callable[[], float]:
    """Return the seconds that training itself is measured in: on a CPU of the processor, over the number of threads.

    So waiting for a processor that other programs hold does not count. On a GPU they are seconds of the wall clock.
    """
    if device.type == "cpu":
        return lambda: time.process_time() / threads
    return lambda: time.monotonic()


@dataclass
class Clock:
    """Counts training seconds, also those before a resume; `budget` in seconds or None.

    `work` is a clock of its own, whose seconds `limit` ends the run at, where it is given; see `work_clock`.
    """

    steps: int
    budget: float | None
    elapsed_before: float = 0.0
    limit: float | None = None
    worked_before: float = 0.0
    work: Callable[[], float] = field(default=lambda: time.monotonic())
    _started: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        self._work_started = self.work()

    @property
    def elapsed(self) -> float:
        """Return the training seconds so far."""
        return self.elapsed_before + time.monotonic() - self._started

    @property
    def worked(self) -> float:
        """Return the seconds of `work` so far."""
        return self.worked_before + self.work() - self._work_started

    def progress(self, step: int) -> float:
        """Return progress in [0, 1] before `step`: the share of the limit, of the time budget, else of the steps."""
        if self.limit is not None:
            return self._share_of_limit(step)
        share = step / self.steps if self.budget is None else self.elapsed / max(self.budget, 1e-9)
        return min(share, 1.0)

    def _share_of_limit(self, step: int) -> float:
        """At least one step is made, and no other of which less than half fits, by the mean of those made."""
        if step == 0 or self.limit is None:
            return 0.0
        worked = self.worked
        return 1.0 if worked + worked / step / 2 >= self.limit else worked / self.limit
