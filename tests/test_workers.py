"""The worker pool under kind and unkind functions."""

import functools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.machine import available_cores, available_memory, core_quota, default_workers
from autoseg.workers import run_cases


def square(number):
    return number * number


def fail_on_three(number):
    if number == 3:
        raise ValueError(f"cannot take {number}")
    if number == 4:
        raise UserError("bad header", where="four.nii", mend="make it anew")
    return number


def die_on_two(number):
    if number == 2:
        ballast = np.ones(2**25)  # 256 MiB, so that the high-water mark is seen
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGKILL if ballast.all() else 0)
    return number


def die_the_first_time(folder, number):
    marker = folder / f"{number}"
    if number == 1 and not marker.exists():
        marker.touch()
        os._exit(7)
    return os.getpid()


def sleep_long(seconds):
    time.sleep(seconds)
    return seconds


def give_lambda(number):
    return lambda: number


def thread_count(number):
    return os.environ["OMP_NUM_THREADS"], number


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def outcome(results):
    results = list(results)
    return {r.case: r.value for r in results if r.error is None}, {r.case: r.error for r in results if r.error}


@pytest.mark.parametrize(("kind", "workers"), [("process", 2), ("process", 1), ("thread", 3)])
def test_every_item_gives_one_result(kind, workers):
    results = list(run_cases(square, range(7), stage="squaring", workers=workers, kind=kind))
    assert sorted(int(r.case) for r in results) == list(range(7))
    assert all(r.value == int(r.case) ** 2 and r.error is None for r in results)


@pytest.mark.parametrize(("kind", "workers"), [("process", 2), ("process", 1), ("thread", 3)])
def test_exception_comes_back_with_case_stage_and_traceback(kind, workers):
    names = run_cases(fail_on_three, range(6), stage="reading", workers=workers, kind=kind, name_of="case_{}".format)
    values, errors = outcome(names)
    assert values == {f"case_{n}": n for n in (0, 1, 2, 5)}
    error = errors["case_3"]
    assert (error.case, error.stage) == ("case_3", "reading")
    assert error.reason.startswith("ValueError: cannot take 3 (test_workers.py, line ")
    assert "in fail_on_three" in error.__notes__[0]
    assert errors["case_4"].reason == "four.nii: bad header\nTo mend it: make it anew"


def test_killed_worker_is_named_and_retried_alone_while_others_finish(caplog):
    values, errors = outcome(run_cases(die_on_two, range(5), stage="resampling", workers=2))
    assert values == {"0": 0, "1": 1, "3": 3, "4": 4}
    assert "SIGKILL" in errors["2"].reason
    assert "twice" in errors["2"].reason
    peak = int(errors["2"].reason.split("high-water mark ")[1].split(" MiB")[0])
    assert 256 < peak < 2000
    assert "run once more, alone" in caplog.text


def test_second_attempt_counts(tmp_path, caplog):
    values, errors = outcome(run_cases(functools.partial(die_the_first_time, tmp_path), range(3), stage="x", workers=2))
    assert not errors
    assert sorted(values) == ["0", "1", "2"]
    assert "exit status 7" in caplog.text


def test_deadline_kills_and_reports():
    start = time.monotonic()
    values, errors = outcome(run_cases(sleep_long, [60, 0.01, 0.02], stage="slow", workers=2, timeout=1.0))
    assert values == {"0.01": 0.01, "0.02": 0.02}
    assert "not done after 1 s" in errors["60"].reason
    assert time.monotonic() - start < 30


def test_deadline_works_for_a_single_item():
    _, errors = outcome(run_cases(sleep_long, [60], stage="slow", timeout=0.3))
    assert list(errors) == ["60"]


def test_threads_refuse_a_deadline():
    with pytest.raises(ValueError, match="kind='process'"):
        list(run_cases(square, [1, 2], stage="x", kind="thread", timeout=1))


def test_a_value_that_cannot_travel_is_an_error_of_its_case():
    _, errors = outcome(run_cases(give_lambda, [1, 2], stage="x", workers=2))
    assert sorted(errors) == ["1", "2"]
    assert "pickle" in errors["1"].reason.lower()


def test_children_have_one_thread_and_the_parent_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    values, _ = outcome(run_cases(thread_count, [1, 2], stage="x", workers=2))
    assert values == {"1": ("1", 1), "2": ("1", 2)}
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_threads_in_flight_are_bounded():
    running, most, lock = 0, 0, threading.Lock()

    def watch(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return number

    values, _ = outcome(run_cases(watch, range(20), stage="x", workers=3, kind="thread"))
    assert len(values) == 20
    assert most <= 3


def test_no_items_no_results():
    assert list(run_cases(square, [], stage="x", workers=4)) == []


def test_closing_the_iterator_ends_the_children():
    import multiprocessing

    results = run_cases(sleep_long, [0.0, 120, 121], stage="x", workers=2)
    assert next(results).value == 0.0
    children = [child for child in multiprocessing.active_children() if child.name == "autoseg x"]
    assert children
    results.close()
    assert not any(child.is_alive() for child in children)


def test_unguarded_script_and_ctrl_c(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from autoseg.workers import run_cases
        for result in run_cases(time.sleep, [0, 0, 300, 300], stage="sleeping", workers=3):
            print("done", flush=True)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "done\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 10
    while group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_lives(process.pid)


def test_cores_and_memory_of_cgroup_v2(tmp_path):
    folder = tmp_path / "sys/fs/cgroup/box"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   8000000 kB\n")
    assert available_memory(tmp_path) == 8_000_000 * 1024
    (folder / "memory.max").write_text("1000000\n")
    (folder / "memory.current").write_text("700000\n")
    (folder / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    (folder / "inner/memory.max").write_text("max\n")
    (folder / "inner/memory.current").write_text("700000\n")
    assert available_memory(tmp_path) == 1_000_000 - 700_000 + 100_000
    assert core_quota(tmp_path) == math.inf
    (folder / "cpu.max").write_text("150000 100000\n")
    assert core_quota(tmp_path) == 1.5
    assert available_cores(tmp_path) == min(2, len(os.sched_getaffinity(0)))
    (folder / "cpu.max").write_text("50000 100000\n")
    assert available_cores(tmp_path) == 1


def test_cores_and_memory_of_cgroup_v1(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n2:cpu,cpuacct:/job\n")
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 8000000 kB\n")
    memory, cpu = tmp_path / "sys/fs/cgroup/memory/job", tmp_path / "sys/fs/cgroup/cpu/job"
    memory.mkdir(parents=True)
    cpu.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text("5000\n")
    (memory / "memory.usage_in_bytes").write_text("6000\n")
    (memory / "memory.stat").write_text("total_inactive_file 500\n")
    assert available_memory(tmp_path) == 0
    (memory / "memory.usage_in_bytes").write_text("4000\n")
    assert available_memory(tmp_path) == 1500
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_default_workers():
    assert default_workers(1) == available_cores()
    assert default_workers(available_memory() * 10) == 1
