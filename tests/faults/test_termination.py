"""SIGTERM ends the commands that do not train as Ctrl-C does: one message, 130, no process left, and they go on."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from model_factory import write_model
from waiting_prediction import PREDICT

from autoseg.cli.running import run, termination_as_interrupt
from autoseg.training.stopping import StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
NAME = "Dataset004_Hippocampus"
# Both wait as long as they are let: a case in a worker process, which is a file beside this one; a case in the network.
WAITING = """
import os, time
from pathlib import Path

def wait(file):
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)
"""
PREPROCESS = """
import sys, threading, time
from pathlib import Path
import autoseg.fingerprinting
from autoseg.cli import main
from autoseg.workers import run_cases
from waiting_cases import wait

def fingerprint(*arguments, **options):
    files = [sys.argv[1] + "/a.pid", sys.argv[1] + "/b.pid"]
    threading.Thread(target=tell, args=(files,), daemon=True).start()
    list(run_cases(wait, files, stage="fingerprint", workers=2))

def tell(files):
    while not all(Path(file).is_file() and Path(file).read_text() for file in files):
        time.sleep(0.05)
    print("ready", flush=True)

autoseg.fingerprinting.fingerprint = fingerprint
main(sys.argv[2:])
"""


def terminated(code, arguments, place):
    """Run a command until it says "ready", send SIGTERM, and return what it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "interrupted by SIGTERM; what was finished before is kept, and the same command goes on from there" in said
    assert "Traceback" not in said


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_preprocessing_and_its_workers_end(tiny, tmp_path):
    (tmp_path / "waiting_cases.py").write_text(WAITING)
    (tmp_path / "raw").symlink_to(tiny.raw)
    command = ["plan-and-preprocess", NAME, "--workspace", tmp_path]
    terminated(PREPROCESS, [tmp_path, *command], tmp_path)
    assert not any(runs((tmp_path / name).read_text()) for name in ("a.pid", "b.pid"))


def test_prediction_ends_and_goes_on(tiny, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted((tiny.raw / NAME / "imagesTr").iterdir())[:3]:
        shutil.copy(image, images)
    command = [
        "predict",
        "-i",
        images,
        "-o",
        tmp_path / "out",
        "-m",
        write_model(tmp_path / "model"),
        "--device",
        "cpu",
    ]
    terminated(PREDICT, command, tmp_path)
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.nii.gz")}
    assert len(first) == 1
    assert run([str(argument) for argument in command]) == 0
    assert "1 case(s) are finished already" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    assert all(file.stat().st_mtime_ns == when for file, when in first.items())


def test_training_puts_the_handler_back_and_other_threads_have_none():
    before = signal.getsignal(signal.SIGTERM)
    with termination_as_interrupt():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before

    found = []

    def elsewhere():
        with termination_as_interrupt():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]
