"""Workers that are killed, run out of memory, hang or raise: told, tried once more, and the others complete."""

import logging
import os
import signal
import time
from functools import partial

import numpy as np
import pytest

from autoseg import workers
from autoseg.cli.running import explain
from autoseg.errors import CasesFailed
from autoseg.workers import run_cases


def behave(how, number):
    """Case 1 misbehaves; the others are squared."""
    if number != 1:
        return number**2
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        return int(np.ones(2**30).sum())  # 8 GiB
    elif how == "hang":
        time.sleep(600)
    raise ValueError(f"{how} of case {number}")


def outcome(how, **options):
    results = list(run_cases(partial(behave, how), range(4), stage="resampling", workers=2, **options))
    assert sorted(int(result.case) for result in results) == [0, 1, 2, 3]
    values = {result.case: result.value for result in results if result.error is None}
    assert values == {"0": 0, "2": 4, "3": 9}
    (error,) = [result.error for result in results if result.error]
    message, code = explain(CasesFailed([error]))
    assert code == 1
    assert message.startswith("error: 1 case(s) failed; the others are complete:\n  case 1, resampling: ")
    return error.reason


def test_a_signal(caplog):
    reason = outcome("signal")
    assert "SIGSEGV" in reason
    assert "memory high-water mark" in reason
    assert reason.endswith("twice")
    assert caplog.text.count("run once more, alone") == 1


def test_no_memory():
    assert "MemoryError" in outcome("memory")


def test_an_exception():
    assert outcome("exception").startswith("ValueError: exception of case 1 (test_workers_in_trouble.py")


def test_a_hang():
    assert "not done after 2 s, so it was stopped (memory high-water mark" in outcome("hang", timeout=2.0)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_silence_is_told(kind, monkeypatch, caplog):
    monkeypatch.setattr(workers, "SILENCE_SECONDS", 0.3)
    caplog.set_level(logging.WARNING)
    results = list(run_cases(time.sleep, [0.0, 1.2], stage="resampling", workers=2, kind=kind))
    assert len(results) == 2
    told = [line for line in caplog.messages if "no case was finished" in line]
    assert all(line.startswith("resampling: no case was finished for 0.3 s; at work: case ") for line in told)
    assert any("case 1.2 for " in line for line in told)
