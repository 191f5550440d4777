"""Workers that are killed, run out of memory, hang or raise: told, tried once more, and the others complete."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from autoseg import worker_pool, workers
from autoseg.cli.running import explain
from autoseg.deadlines import case_seconds, file_bytes
from autoseg.errors import CasesFailed, UserError
from autoseg.workers import run_cases


def behave(how, number):
    """Case 1 misbehaves; the others are squared."""
    if number != 1:
        return number**2
    if how == "signal":
        signal.raise_signal(signal.SIGSEGV)
    elif how == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        return int(np.ones(2**30).sum())  # 8 GiB
    elif how == "hang":
        time.sleep(600)
    raise ValueError(f"{how} of case {number}")


def outcome(how, workers=2, **options):
    results = list(run_cases(partial(behave, how), range(4), stage="resampling", workers=workers, **options))
    assert sorted(int(result.case) for result in results) == [0, 1, 2, 3]
    values = {result.case: result.value for result in results if result.error is None}
    assert values == {"0": 0, "2": 4, "3": 9}
    (error,) = [result.error for result in results if result.error]
    message, code = explain(CasesFailed([error]))
    assert code == 1
    assert message.startswith("error: 1 case(s) failed; the others are complete:\n  case 1, resampling: ")
    return error.reason


@pytest.mark.parametrize("workers", [2, 1])
def test_a_signal(workers, caplog):
    reason = outcome("signal", workers)
    assert "SIGSEGV" in reason
    assert "memory high-water mark" in reason
    assert reason.endswith("twice")
    assert caplog.text.count("run once more, alone") == 1


@pytest.mark.parametrize("workers", [2, 1])
def test_no_memory(workers):
    assert "MemoryError" in outcome("memory", workers)


def test_an_exception():
    assert outcome("exception").startswith("ValueError: exception of case 1 (test_workers_in_trouble.py")


def test_a_hang():
    assert "not done after 2 s, so it was stopped (memory high-water mark" in outcome("hang", timeout=2.0)


@pytest.mark.parametrize("workers", [2, 1])
def test_a_hang_in_a_stage_that_gives_no_deadline(workers, monkeypatch):
    monkeypatch.setenv("AUTOSEG_CASE_SECONDS", "2")
    reason = outcome("hang", workers, size_of=lambda number: 2**30)
    assert reason.startswith("not done after 2 s, so it was stopped")
    assert reason.endswith("if such a case may take longer, set AUTOSEG_CASE_SECONDS")


def test_deadlines_are_generous_and_grow_with_the_files(monkeypatch, tmp_path):
    assert case_seconds(0) == 3600
    assert case_seconds(2**30) == 3600 + 4096
    monkeypatch.setenv("AUTOSEG_CASE_SECONDS", "inf")
    assert case_seconds(2**30) == math.inf
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("AUTOSEG_CASE_SECONDS", wrong)
        with pytest.raises(UserError, match=f"AUTOSEG_CASE_SECONDS: '{wrong}' is no number") as caught:
            list(run_cases(abs, [1, 2], stage="x", workers=2))
        assert "such as 7200" in caught.value.mend
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(bytes(10))
    (tmp_path / "label").write_bytes(bytes(5))
    assert file_bytes([tmp_path / "series", tmp_path / "label", None, tmp_path / "missing"]) == 15


class HangsWhenUnpickled:
    def __reduce__(self):
        return time.sleep, (600,)

    def __call__(self, item):
        return item


def test_a_hang_while_starting(monkeypatch):
    monkeypatch.setattr(worker_pool, "START_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"of stage resampling did not start within 0\.5 s"):
        list(run_cases(HangsWhenUnpickled(), range(4), stage="resampling", workers=2))


HANGING_FORK_SERVER = """
import multiprocessing, sys, time
from autoseg import worker_pool
from autoseg.errors import UserError
from autoseg.workers import run_cases

worker_pool.START_SECONDS = 1.0
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["imports_for_ever"])
worker_pool._context = lambda *_: context
if __name__ == "__main__":
    try:
        list(run_cases(abs, range(4), stage="resampling", workers=2))
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is a fork server on Linux only")
def test_a_fork_server_that_hangs_in_its_imports_is_told_and_ended(tmp_path):
    (tmp_path / "imports_for_ever.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    (tmp_path / "command.py").write_text(HANGING_FORK_SERVER)
    done = subprocess.run(
        [sys.executable, "command.py"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    server, *said = done.stdout.splitlines()
    assert said == [
        "the worker processes of stage resampling did not start within 1 s",
        "To mend it: see whether the disk of the installation answers, then repeat the command",
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


def test_a_pause_of_everything_moves_the_deadlines(monkeypatch):
    """As after Ctrl-Z and fg: the workers were stopped as well."""
    pool = worker_pool.ProcessPool(abs, [1], "x", str, 1, [60.0], True)
    pool.workers.append(worker_pool.Worker(None, None, deadline=time.monotonic() + 60))
    pool._forgive_pause()
    assert pool.workers[0].deadline - time.monotonic() < 61
    pool.looked -= 7200
    pool._forgive_pause()
    assert pool.workers[0].deadline - time.monotonic() > 7200


def test_a_crash_in_this_process_names_the_case(tmp_path):
    script = """
import os, signal
from autoseg.workers import run_cases
def crash(item):
    if item == "hippocampus_007":
        signal.raise_signal(signal.SIGSEGV)
print([r.case for r in run_cases(crash, ["a", "hippocampus_007"], stage="resampling", workers=1, size_of=len)])
"""
    own = os.environ | {"TMPDIR": str(tmp_path)}  # what it leaves for the next command is not for the next test
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == -signal.SIGSEGV
    assert "in case hippocampus_007, resampling" in done.stderr


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_silence_is_told(kind, monkeypatch, caplog):
    for module in (workers, worker_pool):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.3)
    caplog.set_level(logging.WARNING)
    results = list(run_cases(time.sleep, [0.0, 1.2], stage="resampling", workers=2, kind=kind))
    assert len(results) == 2
    told = [line for line in caplog.messages if "no case was finished" in line]
    assert all(line.startswith("resampling: no case was finished for 0.3 s; at work: case ") for line in told)
    assert any("case 1.2 for " in line for line in told)
