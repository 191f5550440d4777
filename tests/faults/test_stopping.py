"""SIGTERM ends a training within ten seconds, with a checkpoint from which the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_workspace import small_spec

from autoseg import Trainer
from autoseg.errors import Interrupted
from autoseg.plans import Plans
from autoseg.storage import read_json
from autoseg.training import train
from autoseg.training.checkpoint import load_weights
from autoseg.training.observing import Observer

NAME = "Dataset004_Hippocampus"
SECONDS = 10.0  # from the signal to the end of the process, where every process has a core
TELLING = """
from autoseg import Trainer, register

@register.trainer("telling")
class Telling(Trainer):
    def after_step(self, progress):
        super().after_step(progress)
        print("step", self.step + 1, flush=True)
"""
COMMAND = """
import sys
from pathlib import Path
from autoseg.cli.running import explain
from autoseg.training import train
from autoseg.workspace import Workspace
raw, preprocessed, results, trainer = map(Path, sys.argv[1:])
workspace = Workspace(raw=raw, preprocessed=preprocessed, results=results, root=results)
try:
    train("Dataset004_Hippocampus", "3d_fullres", "0", trainer=str(trainer), plans_name="stopped", device="cpu",
          workers=2, workspace=workspace, settings={"steps": 100000})
except BaseException as error:
    message, code = explain(error)
    print(message, file=sys.stderr)
    sys.exit(code)
"""


@pytest.fixture
def larger(scratch):
    """Plans with some hundred thousand weights beside the tiny ones."""
    plans = Plans.read(scratch.plans_file(NAME, "tiny"))
    full = plans.configurations["3d_fullres"]
    patch = (40, 48, 40)
    network = small_spec(full.network, patch).model_copy(update={"features": (16, 32, 64)})
    large = full.model_copy(update={"network": network, "patch_size": patch})
    file = scratch.plans_file(NAME, "stopped")
    plans.model_copy(update={"plans_name": "stopped", "configurations": {"3d_fullres": large}}).write(file)
    yield scratch
    file.unlink()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_sigterm_ends_within_ten_seconds_and_the_run_goes_on(larger, tmp_path):
    (tmp_path / "telling.py").write_text(TELLING)
    places = [larger.raw, larger.preprocessed, tmp_path / "results", tmp_path / "telling.py"]
    run = tmp_path / "results" / NAME / "telling__stopped__3d_fullres" / "fold_0"
    done = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, places)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with child:
            assert child.stdout.readline() == f"step {done + 1}\n"
            child.stdout.readline()
            child.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            _, told = child.communicate(timeout=60)
            took = time.monotonic() - asked
        assert took < SECONDS * max(1.0, os.getloadavg()[0] / os.cpu_count())  # others' work is not this run's
        assert child.returncode == 130
        assert "interrupted: stopped by SIGTERM at step" in told
        record = read_json(run / "run.json")
        assert record["status"] == "interrupted"
        assert record["steps_done"] >= done + 2
        assert load_weights(run / "weights.safetensors")
        done = record["steps_done"]


def test_a_stop_does_not_wait_for_validation(scratch, monkeypatch):
    class Stopped(Trainer):
        def finish(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def never(*arguments, **options):
        raise AssertionError("validation was begun")

    with monkeypatch.context() as patch:
        patch.setattr("autoseg.plugins.load", _instead(Stopped))
        patch.setattr("autoseg.training.run.validate", never)
        with pytest.raises(Interrupted, match="stopped by SIGTERM; the checkpoint is complete"):
            _train(scratch)
    folder = scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", "0")
    assert read_json(folder / "run.json")["status"] == "interrupted"
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    _train(scratch)
    assert read_json(folder / "run.json")["status"] == "finished"
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before


def test_a_stop_does_not_wait_for_the_observed_cases(scratch, monkeypatch):
    def stopped(self, case, step):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the case was predicted")

    with monkeypatch.context() as patch:
        patch.setattr(Observer, "_score", stopped)
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 1; the checkpoint is complete"):
            _train(scratch)
    (folder,) = _train(scratch)
    assert read_json(folder / "run.json")["steps_done"] == 12


def _train(workspace):
    return train(NAME, "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=workspace)


def _instead(trainer):
    from autoseg import plugins

    load = plugins.load
    return lambda kind, *rest: trainer if kind == "trainer" else load(kind, *rest)
