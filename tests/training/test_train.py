import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from autoseg import Trainer
from autoseg.errors import Interrupted, UserError
from autoseg.storage import read_json
from autoseg.store.stored_case import StoredCase
from autoseg.training import TrainingFailed, loop, observing, train
from autoseg.training.checkpoint import load_weights
from autoseg.training.log import read_events, write_run

NAME = "Dataset004_Hippocampus"


def run(workspace, folds="0", configuration="3d_fullres", **options):
    options = {"plans_name": "tiny", "device": "cpu", "deterministic": True, "workers": 1} | options
    return train(NAME, configuration, folds, workspace=workspace, **options)


def weights_equal(one, other):
    a, b = load_weights(one / "weights.safetensors"), load_weights(other / "weights.safetensors")
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_weights_log_predictions_and_scores(scratch):
    (folder,) = run(scratch)
    record = read_json(folder / "run.json")
    assert record["status"] == "finished"
    assert record["steps_done"] == 12
    assert record["settings"]["steps"] == {"value": 12, "origin": "plan"}
    assert not set(record["train_cases"]) & set(record["validation_cases"])
    summary = read_json(folder / "validation" / "summary.json")
    assert set(summary["cases"]) == set(record["validation_cases"])
    for case in record["validation_cases"]:
        assert (folder / "validation" / f"{case}.nii.gz").is_file()
    events = read_events(folder / "log.jsonl")
    assert {"step", "validation", "end"} <= {event["event"] for event in events}
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert all(loss == loss for loss in losses)


@pytest.mark.parametrize("configuration", ["2d", "3d_lowres"])
def test_every_configuration_trains(scratch, configuration):
    (folder,) = run(scratch, configuration=configuration)
    assert read_json(folder / "run.json")["status"] == "finished"


def test_a_second_call_leaves_a_finished_run_alone_and_restart_does_not(scratch):
    (folder,) = run(scratch)
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    run(scratch)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    run(scratch, restart=True)
    assert (folder / "weights.safetensors").stat().st_mtime_ns > before


def test_worker_count_does_not_change_the_weights_and_the_seed_does(scratch, tmp_path):
    (one,) = run(scratch, workers=1)
    kept = one.rename(tmp_path / "kept")
    (two,) = run(scratch, workers=3)
    assert weights_equal(kept, two)
    (other,) = run(scratch, restart=True, seed=1)
    assert not weights_equal(kept, other)


def test_the_cascade_needs_its_previous_stage_and_trains_on_it(scratch):
    with pytest.raises(UserError, match="train it first"):
        run(scratch, configuration="3d_cascade_fullres")
    run(scratch, "cv", "3d_lowres")
    (folder,) = run(scratch, configuration="3d_cascade_fullres")
    assert load_weights(folder / "weights.safetensors")["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 3
    (named,) = run(scratch, configuration="3d_cascade_fullres", name="second", seed=1)  # on the same previous stage
    assert read_json(named / "run.json")["status"] == "finished"


def test_settings_reach_the_run(scratch):
    settings = {"steps": "3", "optimizer": "sgd", "weight_average": "0.9", "accumulate": "2"}
    (folder,) = run(scratch, settings=settings)
    record = read_json(folder / "run.json")
    assert record["steps_done"] == 3
    assert record["settings"]["optimizer"] == {"value": "sgd", "origin": "command line"}


def test_a_loss_that_is_no_number_stops_with_a_diagnosis(scratch, tmp_path):
    plugin = tmp_path / "exploding.py"
    plugin.write_text(
        "from autoseg import Trainer, register\n"
        '@register.trainer("exploding")\n'
        "class Exploding(Trainer):\n"
        "    def loss(self, logits, target):\n"
        "        return logits.sum() * float('nan')\n"
    )
    with pytest.raises(TrainingFailed, match="lower --set learning_rate"):
        run(scratch, trainer=str(plugin))


def test_a_network_broken_by_its_last_step_is_told_as_divergence(scratch):
    """The loss before the step was finite; no image is to blame."""
    with pytest.raises(TrainingFailed) as told:
        run(scratch, settings={"learning_rate": "1e30", "steps": "1", "observed_cases": "0"})
    said = str(told.value)
    assert said.startswith("fold 0 diverged: the network's output is not finite for case hippocampus_")
    assert "after step 1 (learning rate 1e+30, precision auto)" in said
    assert "lower --set learning_rate" in said
    assert "look for NaN" not in said
    folder = scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", "0")
    assert read_json(folder / "run.json")["status"] == "failed"
    run(scratch, settings={"steps": "1"}, restart=True)  # the mend
    assert read_json(folder / "run.json")["status"] == "finished"


def test_a_network_broken_before_its_last_step_is_told_by_its_loss(scratch):
    with pytest.raises(TrainingFailed, match=r"the loss became (nan|inf)(.|\n)*lower --set learning_rate"):
        run(scratch, settings={"learning_rate": "1e30", "steps": "5"})


@pytest.fixture
def observed_often(monkeypatch):
    monkeypatch.setattr(observing, "LARGEST_SHARE", 1e9)


def broken_in_evaluation(tmp_path, until):
    """Return a trainer whose network, as it is when it predicts, overflows until a step."""
    plugin = tmp_path / "lagging.py"
    plugin.write_text(
        "from torch import nn\n"
        "from autoseg import Trainer, register\n"
        "class Overflowing(nn.Module):\n"
        "    def __init__(self, network):\n"
        "        super().__init__()\n"
        "        self.network = network\n"
        "    def forward(self, x):\n"
        "        return self.network(x) / 0.0\n"
        '@register.trainer("lagging")\n'
        "class Lagging(Trainer):\n"
        "    def inference_module(self):\n"
        "        network = super().inference_module()\n"
        f"        return Overflowing(network) if self.step < {until} else network\n"
    )
    return str(plugin)


@pytest.mark.usefixtures("observed_often")
def test_observed_output_that_is_not_finite_is_told_and_training_goes_on(scratch, tmp_path):
    (folder,) = run(scratch, trainer=broken_in_evaluation(tmp_path, 6), settings={"observed_cases": "2"})
    assert read_json(folder / "run.json")["status"] == "finished"
    events = read_events(folder / "log.jsonl")
    seen = {event["step"]: event for event in events if event["event"] == "validation"}
    early, late = seen[min(seen)], seen[max(seen)]
    assert (early["step"], early["mean_dice"], early["ema_dice"]) == (1, None, None)
    assert list(early["case_dice"].values()) == [{}, {}]
    assert late["step"] > 6
    assert late["mean_dice"] is not None
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any("the network's output is not finite for 2 of 2 observed cases after step 1 " in note for note in notes)


@pytest.mark.usefixtures("observed_often")
def test_output_that_never_is_finite_stops_late(scratch, tmp_path):
    with pytest.raises(TrainingFailed, match=r"validations found no foreground at [6-9].%.*not finite"):
        run(scratch, trainer=broken_in_evaluation(tmp_path, 99))


def test_values_of_an_image_that_are_not_finite_are_no_divergence(scratch, monkeypatch):
    stored = StoredCase.image

    def image(case, slices=None):  # patches for training are as they were
        return stored(case, slices) if slices is not None else np.full_like(stored(case), np.nan)

    monkeypatch.setattr(StoredCase, "image", image)
    (folder,) = run(scratch, settings={"steps": "1", "observed_cases": "0"})
    failed = read_json(folder / "validation" / "summary.json")["failed"]
    assert all("look for NaN or huge values in the image" in reason for reason in failed.values())
    assert failed


def test_a_time_budget_is_kept(scratch):
    started = time.monotonic()
    (folder,) = run(scratch, deterministic=False, time_budget=12.0)
    assert time.monotonic() - started < 12.0 * 1.05 + 2.0  # on a machine that does other things, too
    steps = [event for event in read_events(folder / "log.jsonl") if event["event"] == "step"]
    assert steps[-1]["progress"] > 0.9
    assert read_json(folder / "run.json")["status"] == "finished"


def test_an_unknown_plan_and_an_unprocessed_configuration_are_told(scratch):
    with pytest.raises(UserError, match="known: tiny"):
        run(scratch, plans_name="other")


CHILD = """
import sys
from pathlib import Path
from autoseg.training import train
from autoseg.workspace import Workspace
raw, preprocessed, results = map(Path, sys.argv[1:4])
workspace = Workspace(raw=raw, preprocessed=preprocessed, results=results, root=results)
train("Dataset004_Hippocampus", "3d_fullres", "0", plans_name="tiny", device="cpu", deterministic=True, workers=1,
      workspace=workspace, settings={"checkpoint_minutes": "0", "steps": "12"})
"""


def start_child(scratch, results):
    arguments = [str(scratch.raw), str(scratch.preprocessed), str(results)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.DEVNULL)


def test_killed_and_resumed_equals_uninterrupted(scratch, tmp_path):
    """SIGKILL at random steps (a checkpoint after each), twice; the end is the same bit for bit."""
    draw = random.Random(7)
    results = tmp_path / "killed"
    folder = results / NAME / "supervised__tiny__3d_fullres" / "fold_0"
    for _ in range(2):
        child = start_child(scratch, results)
        wanted = draw.randint(1, 5) + _steps(folder)
        while child.poll() is None and _steps(folder) < wanted:
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.returncode == -signal.SIGKILL
    child = start_child(scratch, results)
    assert child.wait() == 0
    (whole,) = run(scratch, settings={"steps": "12"})
    assert read_json(folder / "run.json")["steps_done"] == 12
    assert weights_equal(folder, whole)


def test_killed_between_the_two_files_of_the_last_checkpoint(scratch, tmp_path, monkeypatch):
    """Whatever was written first, the weights that a finished run shows are those of its last step."""
    written = []

    def striking(original):
        def save(folder, content):
            original(folder, content)
            written.append(original.__name__)
            if len(written) == 1:
                raise KeyboardInterrupt("in place of a kill")

        return save

    with monkeypatch.context() as patch:
        for name in ("save_state", "save_weights"):
            patch.setattr(f"autoseg.training.loop.{name}", striking(getattr(loop, name)))
        with pytest.raises(KeyboardInterrupt):
            run(scratch)
    (folder,) = run(scratch)
    whole = folder.rename(tmp_path / "killed")
    (folder,) = run(scratch)
    assert weights_equal(folder, whole)


def test_a_run_that_starts_over_does_not_log_its_steps_twice(scratch):
    (folder,) = run(scratch)
    (folder / "state.pt").unlink()
    write_run(folder, status="running")
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # the line that was being written
    run(scratch)
    events = read_events(folder / "log.jsonl")
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == sorted(set(steps))
    assert [event["event"] for event in events].count("end") == 1


def _steps(folder):
    path = folder / "log.jsonl"
    if not path.exists():
        return 0
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return max((line.get("step", 0) for line in lines if line["event"] == "step"), default=0)


def test_a_stop_signal_ends_with_a_usable_checkpoint(scratch, monkeypatch):
    class Stopping(Trainer):
        def after_step(self, progress):
            super().after_step(progress)
            if self.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("autoseg.plugins.load", _instead(Stopping))
    with pytest.raises(Interrupted, match="SIGTERM at step 5"):
        run(scratch)
    folder = scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", "0")
    assert read_json(folder / "run.json")["status"] == "interrupted"
    assert load_weights(folder / "weights.safetensors")
    monkeypatch.undo()
    run(scratch)
    assert read_json(folder / "run.json")["steps_done"] == 12


def _instead(trainer):
    from autoseg import plugins

    load = plugins.load
    return lambda kind, *rest: trainer if kind == "trainer" else load(kind, *rest)


def test_two_processes_train_together_without_a_word_on_strides(scratch, monkeypatch):
    """1x1 convolutions' gradients have other strides than their parameters, of which torch warns each process."""
    monkeypatch.setenv("PYTHONWARNINGS", "error:Grad strides do not match")
    (folder,) = run(scratch, configuration="2d", architecture="unet", processes=2, settings={"steps": "4"})
    record = read_json(folder / "run.json")
    assert (record["status"], record["processes"]) == ("finished", 2)


def test_a_network_without_the_form_of_the_plan_is_told(scratch):
    with pytest.raises(UserError, match="'meddinov3' has no 3D form"):
        train(NAME, "3d_fullres", "0", architecture="meddinov3", workspace=scratch, plans_name="tiny", device="cpu")
