"""What a piece of work takes within a child, whoever does it."""

import itertools
import subprocess
import sys
import time

import pytest
from sides.timing import processor_seconds, timed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the accounts are those of Linux")


def burn(seconds):
    """Compute until so much processor time is gone."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_one_call_takes_what_it_computes():
    found = timed(lambda: burn(0.05), {"least": 1, "seconds": 0.2})
    assert found["count"] in (4, 5)
    assert found["cpu_seconds"] == pytest.approx(0.05, rel=0.2)
    assert found["seconds"] >= found["cpu_seconds"] * 0.9
    assert found["resident_before"] > 2**20


def test_at_least_so_many_calls():
    assert timed(lambda: None, {"least": 7, "seconds": 0})["count"] == 7


def test_work_of_loaders_ends_by_the_clock(monkeypatch):
    """A call that only waits would never fill seconds of the processor."""
    clock = itertools.count(step=0.01)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    assert 2 <= timed(lambda: next(clock), {"least": 1, "seconds": 0.1, "loaders": 2})["count"] <= 6


def test_children_that_live_count():
    program = (
        "import sys, time\nwhile time.process_time() < 0.4: pass\nprint(time.process_time(), flush=True)\n"
        "sys.stdin.read()"
    )
    before = processor_seconds()
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        child.stdout.readline()
        assert processor_seconds() - before >= 0.35
        child.stdin.close()
