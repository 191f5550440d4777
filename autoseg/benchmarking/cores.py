"""How many threads a run has and how many runs go on at a time: what cores and the campaign's beginning allow."""

from __future__ import annotations

import logging
import os

from autoseg.benchmarking.record import Record
from autoseg.devices import choose_device
from autoseg.machine import available_cores

THREADS_VARIABLE = "OMP_NUM_THREADS"
log = logging.getLogger(__name__)


def threads_of_a_run(jobs: int, device: str) -> int:
    """Return the threads of each of so many runs: their share of the cores, on a CPU at most OMP_NUM_THREADS if set."""
    share = max(1, available_cores() // jobs)
    asked = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()
    return min(share, int(asked)) if _on_cpu(device) and asked.isdecimal() and int(asked) else share


def threads_and_jobs(record: Record, jobs: int, device: str) -> tuple[int, int]:
    """Return the threads of a run and how many runs go on at a time, for a campaign that begins or goes on.

    All runs of a campaign have as many threads as its first: on a CPU they are compared by processor time over threads,
    on a GPU these load its data. On a CPU where so many runs have no room, fewer go on at a time, which is said.
    """
    threads, cores = record.content["threads"], available_cores()
    if threads == 1 or not _on_cpu(device):
        return threads, jobs
    room = max(1, cores // threads)
    if threads > cores:
        log.warning(
            "this campaign's runs have %d threads each, and %d core(s) can be used now: what runs from here on takes "
            "longer and is measured worse. To mend it: use as many cores as before, or begin another with --name",
            threads, cores,
        )  # fmt: skip
    elif jobs > room:
        log.warning(
            "this campaign's runs have %d threads each, as when it began, so %d go(es) on at a time on %d core(s), not "
            "%d. To mend it: --restart, or another campaign with --name", threads, room, cores, jobs,
        )  # fmt: skip
    return threads, min(jobs, room)


def _on_cpu(device: str) -> bool:
    """Return whether runs are made on a CPU; a device that is named may be one of another machine."""
    named = device.partition(",")[0].partition(":")[0]
    return (choose_device().type if named == "auto" else named) == "cpu"
