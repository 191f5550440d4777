"""Ten SIGKILLs in all commands: repeated, each leaves what an undisturbed one leaves; the recorded run has 100."""

import re
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="commands run in forks of one process")
def test_killed_commands_repeated_leave_what_undisturbed_ones_leave(repository, tmp_path):
    script = repository / "benchmarks" / "kills.py"
    arguments = ["--kills", "10", "--seed", "1", "--workers", "1", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    kills, touched, equal, trials = map(
        int, re.fullmatch(r"\| all \| (\d+) \| (\d+) \| (\d+) of (\d+) \|", total).groups()
    )
    assert kills >= 10
    assert touched >= 3
    assert equal == trials
