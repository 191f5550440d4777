"""Locks: one holder at a time, nothing left behind, no lock of the dead."""

import subprocess
import sys

import pytest

from autoseg.errors import UserError
from autoseg.lock import locked

TAKEN = UserError("taken")
HOLDER = """
import sys
from pathlib import Path
from autoseg.errors import UserError
from autoseg.lock import locked
with locked(Path(sys.argv[1]), UserError("taken")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_holder_at_a_time_and_nothing_stays(tmp_path):
    file = tmp_path / "below" / ".lock"
    with locked(file, TAKEN), pytest.raises(UserError, match="taken"), locked(file, TAKEN):
        pass
    assert list(file.parent.iterdir()) == []
    with locked(file, TAKEN):
        assert file.exists()


def test_a_killed_process_holds_nothing(tmp_path):
    file = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="taken"), locked(file, TAKEN):
            pass
        holder.kill()
    assert file.exists()
    with locked(file, TAKEN):
        pass
    assert not file.exists()
