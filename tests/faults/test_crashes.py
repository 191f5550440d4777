"""What is done in the command's own process may end it: the same command then does it in a child, and goes on."""

import os
import signal
import subprocess
import sys

import pytest
from bad_data import sound
from model_factory import write_model

from autoseg import crash_guard
from autoseg.crash_guard import guarded

FUNCTIONS = """
import os, signal
from pathlib import Path

def crash(item):
    if item == "bad" and Path("faulty").exists():
        signal.raise_signal(signal.SIGSEGV)
    return item.upper()
"""
ENVIRONMENT = dict(os.environ)
COMMAND = """
import logging, sys
from functions import crash
from autoseg.workers import run_cases

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    results = run_cases(crash, ["a", "bad", "c"], stage="resampling", workers=1, **{options})
    for result in results:
        print(result.case, result.value or result.error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
@pytest.mark.parametrize("options", ["{'size_of': len}", "{'kind': 'thread', 'size_of': len}"])
def test_after_a_crash_the_same_command_names_the_case_and_completes_the_others(options, tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "command.py").write_text(COMMAND.replace("{options}", options))
    (tmp_path / "faulty").touch()

    def call():
        return subprocess.run(
            [sys.executable, "command.py"], capture_output=True, text=True, check=False, cwd=tmp_path,
            env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        )  # fmt: skip

    first = call()
    assert first.returncode == -signal.SIGSEGV
    assert "in case bad, resampling" in first.stderr
    for _ in range(2):  # it stays so while the case is bad
        again = call()
        assert again.returncode == 0, again.stderr
        assert "resampling: an earlier command ended while it was at these cases, by a crash or killed" in again.stderr
        assert "Traceback" not in again.stderr
        bad, *others = sorted(again.stdout.splitlines(), key=lambda line: not line.startswith("bad"))
        assert sorted(others) == ["a A", "c C"]
        assert bad.startswith("bad case bad, resampling: the worker process was ended by SIGSEGV")
    (tmp_path / "faulty").unlink()
    mended = call()
    assert sorted(mended.stdout.splitlines()) == ["a A", "bad BAD", "c C"]
    assert list(tmp_path.glob("*.at-work")) == []
    assert call().stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_kill_in_the_work_of_sound_cases_costs_one_line_and_no_result(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS.replace("SIGSEGV", "SIGKILL"))
    (tmp_path / "command.py").write_text(COMMAND.replace("{options}", "{'size_of': len}"))
    (tmp_path / "faulty").touch()  # whoever kills does so at this case

    def call():
        return subprocess.run(
            [sys.executable, "command.py"], capture_output=True, text=True, check=False, cwd=tmp_path,
            env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        )  # fmt: skip

    assert call().returncode == -signal.SIGKILL
    (tmp_path / "faulty").unlink()
    again, then = call(), call()
    assert "warning" not in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert then.stderr == ""
    assert sorted(again.stdout.splitlines()) == sorted(then.stdout.splitlines()) == ["a A", "bad BAD", "c C"]


STARTING = """
import os, signal, sys
def readers(frame):
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back

def crash(event, arguments):
    if event == "open" and "bad_0000" in str(arguments[0]) and os.path.exists("faulty"):
        if "read_image" in readers(sys._getframe()):
            signal.raise_signal(signal.SIGSEGV)
sys.addaudithook(crash)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_so_it_is_with_an_image_that_crashes_its_reader_in_prediction(tmp_path):
    data, model = sound(tmp_path), write_model(tmp_path / "model")
    (tmp_path / "faulty").touch()
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(STARTING)
    own = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path / "start")}
    command = ["predict", "-i", str(data.image.parent), "-o", "out", "-m", str(model), "--device", "cpu"]

    def call():
        return subprocess.run(
            [sys.executable, "-m", "autoseg.cli", *command], capture_output=True, text=True, check=False, cwd=tmp_path,
            env=ENVIRONMENT | own,
        )  # fmt: skip

    first = call()
    assert first.returncode == -signal.SIGSEGV, first.stderr
    assert "in case bad, prediction, reading" in first.stderr
    again = call()
    assert again.returncode == 1, again.stderr
    assert "case bad failed: the worker process was ended by SIGSEGV" in again.stderr
    assert "1 of 2 case(s) segmented" in again.stdout
    assert (tmp_path / "out" / "good.nii.gz").is_file()
    (tmp_path / "faulty").unlink()
    assert call().returncode == 0
    assert list(tmp_path.glob("*.at-work")) == []


def test_only_a_process_that_ends_within_leaves_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(crash_guard, "temporary_folder", lambda: tmp_path)
    with guarded("x", 1) as guard:
        assert not guard.died
        (note,) = tmp_path.iterdir()
        with guarded("x", 1) as other:  # at work in another command
            assert not other.died
        assert note.exists()
    assert not note.exists()
    with pytest.raises(KeyboardInterrupt), guarded("x", 1):
        raise KeyboardInterrupt
    assert not note.exists()
    note.touch()  # of one that died
    with guarded("x", 2) as guard:
        assert not guard.died
    with pytest.raises(KeyboardInterrupt), guarded("x", 1):  # a child may die of it still
        raise KeyboardInterrupt
    with guarded("x", 1) as guard:
        assert guard.died
        guard.again = False
    assert not note.exists()


def test_where_no_note_can_be_written_the_work_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(crash_guard, "temporary_folder", lambda: tmp_path / "file" / "x")
    (tmp_path / "file").touch()
    with guarded("x") as guard:
        assert not guard.died
