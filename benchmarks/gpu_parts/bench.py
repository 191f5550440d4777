"""What a part has at hand in its own process: sizes, device, clock, cores, and the answer that it gives bit by bit."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts.sizes import BATCH, CORES, sizes

NAME = "Dataset901_Noise"
WARNINGS = 8  # as many are kept


class Bench:
    """One part at work; `work` is the folder that all parts share."""

    def __init__(self, work: Path, answer: Path, *, rehearse: bool):
        import torch

        self.work, self.sizes = work, sizes(rehearse=rehearse)
        self.toy = rehearse
        self.device = torch.device(self.sizes.device)
        self.answer: dict[str, Any] = {}
        self._file = answer
        torch.set_num_threads(min(CORES, torch.get_num_threads()))  # code is compiled anew where it changes later

    @property
    def raw(self) -> Path:
        """Return the folder of the raw data set."""
        return self.work / NAME

    @property
    def workspace(self) -> Path:
        """Return the folder of autoseg's workspace."""
        return self.work / "workspace"

    def tell(self, **fields: Any) -> None:
        """Add to the answer, which is on disk from then on."""
        self.answer |= fields
        text = json.dumps(self.answer, default=str)
        draft = self._file.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, self._file)

    def bind(self) -> None:
        """Keep every thread of this process, and what it starts from now on, on as many cores as training has."""
        if not hasattr(os, "sched_setaffinity"):
            return
        chosen = sorted(os.sched_getaffinity(0))[:CORES]
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.sched_setaffinity(int(thread), chosen)

    def synchronise(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of one call and what it returned."""
        self.synchronise()
        began = time.perf_counter()
        result = function()
        self.synchronise()
        return time.perf_counter() - began, result

    def seconds(self, function: Callable[[], Any], lasting: float = 0.0, least: int = 1) -> float:
        """Return the seconds of a call, of at least so many that last at least so long together."""
        self.synchronise()
        began, count = time.perf_counter(), 0
        while count < least or time.perf_counter() - began < lasting:
            function()
            count += 1
        self.synchronise()
        return (time.perf_counter() - began) / count

    def seconds_of_step(self, function: Callable[[], Any]) -> float:
        """Return the seconds of a training step."""
        return self.seconds(function, self.sizes.alone, self.sizes.fewest)

    @property
    def peak_bytes(self) -> int:
        """Return the most memory that tensors took on the GPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def keep_warnings(self) -> None:
        """Put what autoseg warns of into the answer."""
        logging.basicConfig(level=logging.INFO)
        logging.getLogger().addHandler(_Kept(self))

    def random_image(self, *shape: int) -> Any:
        """Return noise (2, 1, *shape) on the device."""
        import torch

        return torch.randn(BATCH, 1, *shape, device=self.device)


class _Kept(logging.Handler):
    """Keeps the first warnings of a process."""

    def __init__(self, bench: Bench):
        super().__init__(logging.WARNING)
        self._bench = bench

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning to the answer."""
        kept = self._bench.answer.get("warnings", [])
        if len(kept) < WARNINGS:
            self._bench.tell(warnings=[*kept, record.getMessage()[:300]])
