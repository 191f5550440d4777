"""Standing in a folder runs nothing of it: no child process looks for its modules there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.benchmarking.children import Task, carry_out

NAMES = ("multiprocessing", "torch", "numpy", "signal", "os", "autoseg")
HOSTILE = "open({mark!r}, 'a').write(__name__ + chr(10))\n"
CASES = """
import sys
from autoseg.workers import run_cases

if __name__ == "__main__":
    print(sorted(result.value for result in run_cases(abs, [-1, 2], stage="a test", workers=int(sys.argv[1]))))
"""
SPREAD = """
from autoseg.training.spreading import spread_folds

def train(*, folds, **arguments):
    print("fold", folds, flush=True)

if __name__ == "__main__":
    spread_folds(train, {"time_budget": None}, ["0"], ["cpu"])
    print("done")
"""


@pytest.fixture
def hostile(tmp_path):
    """A folder with modules that leave a mark when they run, and the mark."""
    folder, mark = tmp_path / "data", tmp_path / "mark"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(HOSTILE.format(mark=str(mark)))
    return folder, mark


def run(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("source", "arguments", "says"),
    [(CASES, ["1"], "[1, 2]"), (CASES, ["2"], "[1, 2]"), (SPREAD, [], "done")],
    ids=["one worker", "several workers", "folds on several devices"],
)
def test_worker_processes_take_no_module_of_the_current_folder(source, arguments, says, hostile, tmp_path):
    folder, mark = hostile
    script = tmp_path / "scripts" / "parent.py"  # what Python looks for modules beside
    script.parent.mkdir()
    script.write_text(source)
    assert says in run([sys.executable, script, *arguments], folder)
    assert not mark.exists(), mark.read_text()


def test_a_command_takes_none_in_a_data_set(hostile, tiny):
    folder, mark = hostile
    shutil.copytree(tiny.raw / "Dataset004_Hippocampus", folder, dirs_exist_ok=True)
    command = Path(sys.executable).with_name("autoseg")
    if not command.is_file():
        pytest.skip("the command is not installed")
    assert "0 error(s)" in run([command, "check", "."], folder)
    assert not mark.exists(), mark.read_text()


def test_runs_of_the_referee_take_none(hostile, tmp_path, monkeypatch):
    folder, mark = hostile
    monkeypatch.chdir(folder)
    heard = []
    carry_out(
        [Task("a/b", "measure", {})],
        lambda *ended: heard.append(ended),
        folder=tmp_path,
        jobs=1,
        threads=1,
        devices=["cpu"],
    )
    assert len(heard) == 1
    assert not mark.exists(), mark.read_text()
