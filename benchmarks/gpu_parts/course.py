"""The course of a measurement: some parts ahead, beside each other; then one after the other, each within its time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_parts.checkout import ROOT
from gpu_parts.parts import Part
from gpu_parts.processes import Child
from gpu_parts.sizes import CORES

AHEAD = 0.4  # of the time, that may go into what is not timed
POLL = 0.05
Results = dict[str, dict[str, Any]]


class Course:
    """Runs parts in processes until `end`, a time.monotonic(); `told` is called with all results after each part."""

    def __init__(self, work: Path, site: Path, *, rehearse: bool, end: float, told: Callable[[str, Results], None]):
        self.results: Results = {}
        self._work, self._rehearse, self._end, self._told = work, rehearse, end, told
        self._environment = environment(work, site)
        self._running: list[Child] = []

    def run(self, parts: Sequence[Part]) -> Results:
        """Run all parts; nothing is left running, however this ends."""
        try:
            self._run_ahead([part for part in parts if part.ahead])
            for part in parts:
                if not part.ahead:
                    self._run_alone(part)
        finally:
            for child in list(self._running):
                self._finish(child)
        return self.results

    def _run_ahead(self, waiting: list[Part]) -> None:
        """Run parts beside each other, as many as there are cores for, each after those that it needs."""
        end = time.monotonic() + AHEAD * self._left
        while waiting or self._running:
            for part in [part for part in waiting if all(name in self.results for name in part.after)]:
                if len(self._running) < max(1, _cores() // CORES):
                    waiting.remove(part)
                    self._begin(part, end)
            for child in [child for child in self._running if child.ended]:
                self._finish(child)
            if time.monotonic() >= end:
                for part in waiting:
                    self._tell(part, {"left_out": f"there was no time for it within {AHEAD:.0%} of all"})
                waiting = []
            time.sleep(POLL)

    def _run_alone(self, part: Part) -> None:
        if self._left < part.least and not self._rehearse:
            self._tell(part, {"left_out": f"{self._left:.0f} s were left, it needs {part.least:.0f}"})
            return
        self._begin(part, self._end)
        for child in list(self._running):
            while not child.ended:
                time.sleep(POLL)
            self._finish(child)

    def _begin(self, part: Part, end: float) -> None:
        lacking = [name for name in part.after if not self.results[name].get("complete")]
        if lacking:
            self._tell(part, {"left_out": f"there is no {' and no '.join(lacking)}"})
        else:
            child = Child(part, self._work, self._environment, rehearse=self._rehearse, end=end)
            self._running.append(child)

    def _finish(self, child: Child) -> None:
        self._running.remove(child)
        self._tell(child.part, child.result())

    def _tell(self, part: Part, result: dict[str, Any]) -> None:
        self.results[part.name] = result
        self._told(part.name, self.results)

    @property
    def _left(self) -> float:
        return self._end - time.monotonic()


def environment(work: Path, site: Path) -> dict[str, str]:
    """Return the variables of a part: where autoseg and this package are, and one compiler's cache for all."""
    before = os.environ.get("PYTHONPATH")
    paths = [str(site), str(ROOT / "benchmarks"), *([before] if before else [])]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton")}
    return caches | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
