"""Workers whose parent is killed end soon, whatever they are at, and so does their fork server."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
SECONDS = 60.0  # that an orphan may take on a busy machine; the cases take ten minutes
CASES = """
import ctypes, os, time
from pathlib import Path

def sleep(file):
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)

def hold_the_interpreter(file):
    Path(file).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)
"""
PARENT = """
import sys
import hanging_cases
from autoseg.workers import run_cases

if __name__ == "__main__":
    files = sys.argv[2:]
    list(run_cases(getattr(hanging_cases, sys.argv[1]), files, stage="a test", workers=len(files)))
"""
TRAINING = """
import os, time
from pathlib import Path
from autoseg.training.spreading import spread_folds
from autoseg.training.stopping import StopRequest

def train(*, folds, **arguments):
    with StopRequest() as stop:
        Path(f"{folds}.pid").write_text(str(os.getpid()))
        while stop.asked is None:
            time.sleep(0.02)
        Path(f"{folds}.checkpoint").write_text(stop.asked)

if __name__ == "__main__":
    spread_folds(train, {"time_budget": None}, ["0", "1"], ["cpu", "cpu"])
"""


def session_of(leader):
    """Return the processes of a session that are alive."""
    alive = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it ended in between
                continue
            if int(session) == leader and state not in "ZX":
                alive.add(int(folder.name))
    return alive


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@contextmanager
def begun(*command, files, **options):
    """Yield a process, in a session of its own, once it has written all `files`; nothing of the session outlives it."""
    parent = subprocess.Popen([sys.executable, *command], start_new_session=True, **options)
    try:
        assert wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
        yield parent
    finally:
        for process in session_of(parent.pid):
            os.kill(process, signal.SIGKILL)
        parent.wait(SECONDS)


def kill(parent):
    """Kill a process; what it started has to end, too."""
    parent.kill()
    parent.wait(SECONDS)
    assert wait_until(lambda: not session_of(parent.pid)), session_of(parent.pid)


@pytest.fixture
def spread(tmp_path):
    """How two folds on two devices are trained, and what each of them writes."""
    (tmp_path / "spread.py").write_text(TRAINING)
    started, stopped = ([tmp_path / f"{fold}.{kind}" for fold in "01"] for kind in ("pid", "checkpoint"))
    return {"files": started, "cwd": tmp_path}, stopped


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", ["sleep", "hold_the_interpreter"])
def test_workers_end_when_their_parent_is_killed(case, workers, tmp_path):
    (tmp_path / "hanging_cases.py").write_text(CASES)
    (tmp_path / "parent.py").write_text(PARENT)
    files = [tmp_path / f"{number}.pid" for number in range(workers)]
    places = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with begun(tmp_path / "parent.py", case, *files, files=files, env=places) as parent:
        assert {int(file.read_text()) for file in files} < session_of(parent.pid)
        kill(parent)


def test_folds_on_several_devices_stop_with_their_checkpoints_when_the_command_is_killed(spread):
    options, stopped = spread
    with begun("spread.py", **options) as parent:
        kill(parent)
        assert [file.read_text() for file in stopped] == ["SIGTERM", "SIGTERM"]


def test_ctrl_c_of_the_whole_group_stops_the_folds_on_several_devices_by_their_parent(spread):
    options, stopped = spread
    with begun("spread.py", stderr=subprocess.PIPE, text=True, **options) as parent:
        os.killpg(parent.pid, signal.SIGINT)
        printed = parent.communicate(timeout=SECONDS)[1]
        assert "Interrupted: stopped by SIGINT" in printed
        assert "KeyboardInterrupt" not in printed
        assert [file.read_text() for file in stopped] == ["SIGTERM", "SIGTERM"]
