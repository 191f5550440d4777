"""Ten SIGKILLs in eight commands: repeated, each leaves what an undisturbed one leaves; the recorded run has more."""

import os
import re
import subprocess
import sys
import time

import pytest

from autoseg.inference import Predictor
from autoseg.selection import find_best
from autoseg.training import train

NAME = "Dataset004_Hippocampus"


@pytest.mark.skipif(sys.platform != "linux", reason="commands run in forks of one process")
def test_killed_commands_repeated_leave_what_undisturbed_ones_leave(repository, tmp_path):
    script = repository / "benchmarks" / "kills.py"
    arguments = ["--kills", "10", "--seed", "1", "--workers", "1", "--folder", str(tmp_path)]
    arguments += ["--without", "pretrain", "export"]  # which take half of the time
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    kills, touched, equal, trials = map(
        int, re.fullmatch(r"\| all \| (\d+) \| (\d+) \| (\d+) of (\d+) \|", total).groups()
    )
    assert kills >= 10
    assert touched >= 3
    assert equal == trials


def test_what_a_killed_command_was_writing_goes_later(scratch, tmp_path):
    """An hour later: until then another process may still be writing it."""
    images = scratch.raw / NAME / "imagesTr"
    places = [
        scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", 0),
        scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", 0) / "validation",
        tmp_path / "out",
        scratch.results / NAME,
    ]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for name, age in ((".writing-old", 2 * 3600), (".writing-new", 60)):
            (place / name).write_text("half")
            os.utime(place / name, (time.time() - age,) * 2)
    train(NAME, "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=scratch, settings={"steps": 2})
    model = find_best(NAME, scratch, device="cpu", workers=1)
    Predictor.load(model, device="cpu", mirroring=False).predict_folder(images, tmp_path / "out")
    for place in places:
        assert [path.name for path in place.glob(".*")] == [".writing-new"]
