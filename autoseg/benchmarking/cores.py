"""How many threads a run has and how many runs go on at a time: what cores and the campaign's beginning allow."""

from __future__ import annotations

import logging
import os

from autoseg.benchmarking.record import Record
from autoseg.devices import choose_device
from autoseg.machine import available_cores

THREADS_VARIABLE = "OMP_NUM_THREADS"
log = logging.getLogger(__name__)


def threads_of_a_run(jobs: int) -> int:
    """Return the threads of each of so many runs: their share of the cores, at most OMP_NUM_THREADS where it is set."""
    share = max(1, available_cores() // jobs)
    asked = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


def threads_and_jobs(record: Record, jobs: int, device: str) -> tuple[int, int]:
    """Return the threads of a run and how many runs go on at a time, for a campaign that begins or goes on.

    On a CPU runs are compared by processor time over threads, so all of a campaign have as many as the first had: where
    so many runs of them have no room on the cores, fewer go on at a time, which is said. On GPUs threads do not count.
    """
    if (choose_device().type if device == "auto" else device) != "cpu":  # a dry run may ask for a GPU elsewhere
        return threads_of_a_run(jobs), jobs
    threads, cores = record.content["threads"], available_cores()
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
