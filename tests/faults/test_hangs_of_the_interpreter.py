"""Compiled code that never lets go of the interpreter: a process of its own tells of it, once it is no mere pause."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import hang_teller, interpreter_watch
from autoseg.hang_teller import Silence, message

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="done on Linux only")

COMMAND = """
import ctypes, os
from autoseg import watching
from autoseg.watching import watched

def hang():
    # read(2), called without letting go of the interpreter, until the standard input is closed
    assert ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1) == 0

watching.LOOK_SECONDS = 0.05
with watched("training, fold 0"), watched("step 7"):
    hang()
print(os.getpid())
"""


def test_a_hang_that_holds_the_interpreter_is_told_by_another_process(tmp_path):
    own = {"AUTOSEG_STEP_SECONDS": "0.2", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | own, text=True,
    ) as command:  # fmt: skip
        told = command.stderr.readline()
        out, rest = command.communicate()  # it goes on, and nobody holds its standard error afterwards
    assert command.returncode == 0
    assert "Thread 0x" not in rest
    assert told.startswith(
        "warning: training, fold 0, step 7 (in hang, <string>:8): no sign of life of the whole process for 0 s; "
        "compiled code holds the interpreter. Nothing is stopped; "
    )
    assert f"`kill -9 {out.strip()}` ends the process" in told
    (file,) = tmp_path.glob("autoseg-hang-*.txt")
    assert told.endswith(f"set AUTOSEG_STEP_SECONDS. Where every thread is stands in {file}\n")
    assert "in _look_on" in file.read_text()


def test_a_process_that_runs_is_not_asked_for_its_places(tmp_path):
    """Not even with a limit that is over at every look: that could end it (see `interpreter_watch`)."""
    busy = COMMAND.replace("hang()\nprint", "end = time.monotonic() + 1\n    while time.monotonic() < end: pass\nprint")
    own = {"AUTOSEG_STEP_SECONDS": "0.2", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", busy.replace("import ctypes", "import time, ctypes")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | own, text=True)
    assert done.returncode == 0
    assert "step 7: no sign of life for" in done.stderr  # that is the thread that watches, which can tell
    assert "whole process" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_silence_is_told_once_and_only_of_a_process_at_work():
    silence = Silence(10.0, look_seconds=5.0)
    assert [silence.look(now, b"1", waits=False) for now in (0.0, 5.0, 10.0, 15.0, 20.0)] == [
        None,
        None,
        10.0,
        None,
        None,
    ]
    assert [silence.look(now, b"2", waits=False) for now in (25.0, 30.0, 35.0)] == [None, None, 10.0]


def test_pauses_of_the_process_and_of_the_machine_do_not_count():
    silence = Silence(10.0, look_seconds=5.0)
    stopped = [silence.look(now, b"1", waits=now < 1000) for now in range(0, 1015, 5)]
    assert stopped == [None] * 201 + [10.0, None]
    late = Silence(10.0, look_seconds=5.0)
    assert [late.look(now, b"1", waits=False) for now in (0.0, 5.0, 600.0, 605.0, 609.0)] == [None] * 5


def test_a_stopped_process_is_seen_to_be_stopped():
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        assert not hang_teller._stopped(sleeping.pid)
        sleeping.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeping.pid, os.WSTOPPED)
        assert hang_teller._stopped(sleeping.pid)
        sleeping.kill()


def test_places_are_those_of_the_threads_at_work():
    places = (
        "Current thread 0x00007f01 (most recent call first):\n"
        '  File "/a/b.py", line 3 in read\n  File "/a/c.py", line 4 in step\n\n'
        'Thread 0x00007f02 (most recent call first):\n  File "/a/d.py", line 5 in wait\n'
    )
    said = message(places, "0x7f02 prediction, case a\n0x7f03 tile 2", 3605.0, 7, "X")
    assert said.startswith(
        "prediction, case a (in wait, d.py:5); tile 2: no sign of life of the whole process for 3605 s"
    )


def test_without_processes_left_only_this_watch_is_missing(monkeypatch):
    def refused(*_, **__):
        raise BlockingIOError("no process left")

    monkeypatch.setattr(interpreter_watch.subprocess, "Popen", refused)
    watch = interpreter_watch.InterpreterWatch(0.1, 0.1)
    watch.note([(1, "x")])
    watch.wind()
    assert watch._memory is None


def test_the_teller_loads_the_standard_library_only():
    text = Path(hang_teller.__file__).read_text()
    assert [line for line in text.splitlines() if line.startswith(("import", "from"))] == [
        "import os", "import re", "import select", "import sys", "import time",
    ]  # fmt: skip
