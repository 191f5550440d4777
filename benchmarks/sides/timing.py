"""What a piece of work takes, repeated for some seconds within a child: wall time and processor time of one piece."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def timed(function: Callable[[], Any], job: dict[str, Any]) -> dict[str, Any]:
    """Call a function at least `least` times for `seconds`; returns what one call took, and what was resident before.

    Seconds are of the processor; of the clock where `loaders` make the work, which then is not this process's own.
    """
    resident = int((PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    enough = time.perf_counter if job.get("loaders") else time.process_time
    count, since, began, cpu = 0, enough(), time.perf_counter(), processor_seconds()
    while count < job["least"] or enough() - since < job["seconds"]:
        function()
        count += 1
    seconds, cpu_seconds = time.perf_counter() - began, processor_seconds() - cpu
    return {"seconds": seconds / count, "cpu_seconds": cpu_seconds / count, "count": count, "resident_before": resident}


def processor_seconds(proc: Path = PROC) -> float:
    """Return the processor time of this process and of its children that live."""
    total = time.process_time()
    for children in (proc / "self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = (proc / child / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # of the user, of the system
    return total
