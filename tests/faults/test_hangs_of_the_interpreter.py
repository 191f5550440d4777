"""Compiled code that never lets go of the interpreter: a process of its own tells of it, once it is no mere pause."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import hang_teller, interpreter_watch
from autoseg.hang_teller import message

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="done on Linux only")

COMMAND = """
import ctypes, os
from autoseg import watching
from autoseg.watching import watched

class Poll(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("found", ctypes.c_short)]

def hang():
    # poll(2), called without letting go of the interpreter, until the standard input is closed
    assert ctypes.PyDLL(None).poll(ctypes.byref(Poll(0, 1)), ctypes.c_ulong(1), 60_000), "nobody told of it"

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
        "warning: training, fold 0, step 7 (in hang, <string>:11): no sign of life of the whole process for 0 s; "
        "compiled code holds the interpreter. Nothing is stopped; "
    )
    assert f"`kill -9 {out.strip()}` ends the process" in told
    (file,) = tmp_path.glob("autoseg-hang-*.txt")
    assert told.endswith(f"set AUTOSEG_STEP_SECONDS. Where every thread is stands in {file}\n")
    assert "in _look_on" in file.read_text()


@pytest.mark.parametrize(("signs", "works", "said"), [(5, "0x1 x", True), (6, "0x1 x", False), (5, "", False)])
def test_a_pause_and_work_of_others_are_not_told(tmp_path, monkeypatch, signs, works, said):
    """The process tells after some quiet, if there was no sign of life meanwhile, and only of work of ours."""
    shared = os.memfd_create("test")
    os.pwrite(shared, (5).to_bytes(8, "little") + works.encode().ljust(100, b"\0"), 0)
    pieces = [b"Timeout (0:10:05)!\n", b"Thread 0x0000000000000001 (most recent call first):\n", b""]
    written = []
    monkeypatch.setattr(hang_teller.os, "read", lambda *_: pieces.pop(0))
    monkeypatch.setattr(hang_teller.os, "write", lambda _, text: written.append(text))

    def nothing_more(*_):
        os.pwrite(shared, signs.to_bytes(8, "little"), 0)
        return [[0] if len(pieces) > 1 else []]

    monkeypatch.setattr(hang_teller.select, "select", nothing_more)
    hang_teller.main(shared, "7", 0.1, str(tmp_path), "X")
    os.close(shared)
    assert len(written) == said
    assert all(b"x: no sign of life of the whole process for 605 s" in text for text in written)


def test_places_are_those_of_the_threads_at_work():
    places = (
        "Timeout (1:00:05)!\nThread 0x00007f01 (most recent call first):\n"
        '  File "/a/b.py", line 3 in read\n  File "/a/c.py", line 4 in step\n\n'
        'Thread 0x00007f02 (most recent call first):\n  File "/a/d.py", line 5 in wait\n'
    )
    said = message(places, "0x7f02 prediction, case a\n0x7f03 tile 2", "7", "X")
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


def test_the_teller_loads_the_standard_library_only():
    text = Path(hang_teller.__file__).read_text()
    assert [line for line in text.splitlines() if line.startswith(("import", "from"))] == [
        "import os", "import re", "import select", "import sys",
    ]  # fmt: skip
