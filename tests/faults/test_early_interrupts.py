"""Ctrl-C while a command or its workers are being loaded, or is over: its exit code, and no traceback of anybody."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
# Ctrl-C comes when a certain module is looked for: that is while the command is being loaded.
LOADING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *others):
        if name == "MODULE":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException as error:  # an import that hides what happened
                raise ImportError("hidden") from error

sys.meta_path.insert(0, Finder())
from autoseg.cli import main
main(["list", "architectures"])
"""
# Python runs this file of its path first: Ctrl-C comes to a worker, or to the fork server, before it can do anything.
STARTING = """
import os, signal, sys
from pathlib import Path

if any("multiprocessing.spawn" in word or "multiprocessing.forkserver" in word for word in sys.orig_argv):
    Path(__file__).with_name("met").touch()
    os.kill(os.getpid(), signal.SIGINT)
"""
ENDING = """
import atexit, os, signal
from autoseg.cli import main

atexit.register(os.kill, os.getpid(), signal.SIGINT)
main(ARGUMENTS)
"""
PARENT = """
import sys
from autoseg.workers import run_cases

if __name__ == "__main__":
    print(sorted(result.value for result in run_cases(abs, [-1, 2], stage="a test", workers=int(sys.argv[1]))))
"""


@pytest.mark.parametrize("module", ["autoseg.cli.running", "typer", "autoseg.cli.app", "autoseg.cli.new"])
def test_while_the_command_is_loaded(module):
    command = [sys.executable, "-c", LOADING.replace("MODULE", module)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was begun\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_while_workers_are_loaded(workers, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STARTING)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert (tmp_path / "met").exists()
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")


@pytest.mark.parametrize(("arguments", "code"), [(["list", "planners"], 0), (["list", "nothing"], 2)])
def test_while_the_interpreter_ends(arguments, code):
    scripts = [f"from autoseg.cli import main; main({arguments})", ENDING.replace("ARGUMENTS", str(arguments))]
    quiet, disturbed = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
        for script in scripts
    )
    assert disturbed.returncode == quiet.returncode == code
    assert (disturbed.stdout, disturbed.stderr) == (quiet.stdout, quiet.stderr)
