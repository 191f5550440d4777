"""How far a run is: by steps, or by the time that it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts training seconds, also those before a resume; `budget` in seconds or None."""

    steps: int
    budget: float | None
    elapsed_before: float = 0.0
    _started: float = field(default_factory=lambda: time.monotonic())

    @property
    def elapsed(self) -> float:
        """Return the training seconds so far."""
        return self.elapsed_before + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """Return progress in [0, 1] before `step`: the share of the time budget, else of the steps."""
        share = step / self.steps if self.budget is None else self.elapsed / max(self.budget, 1e-9)
        return min(share, 1.0)
