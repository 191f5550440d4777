"""What `--restart` discards is kept until the new run has something to go on from."""

import os
import signal
import subprocess
import sys

import pytest

from autoseg.errors import Interrupted, UserError
from autoseg.storage import file_hash, read_json
from autoseg.training import TrainingFailed, train
from autoseg.training.earlier_run import discard_earlier, is_to_be_replaced, set_aside
from autoseg.training.log import write_run

NAME = "Dataset004_Hippocampus"
STOPPING = """
import os, signal
from autoseg import Trainer, register

@register.trainer("stopping")
class Stopping(Trainer):
    def after_step(self, progress):
        super().after_step(progress)
        if str(self.step + 1) == os.environ.get("STOPS_AFTER"):
            os.kill(os.getpid(), signal.SIGINT)
"""
ENDING = """
import os, signal
from autoseg import Trainer, register

@register.trainer("ending")
class Ending(Trainer):
    def loss(self, logits, target):
        assert list(self.context.folder.parent.glob(".earlier-*/fold_0/weights.safetensors"))
        if os.environ.get("ENDS_BY") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("ENDS_BY") == "interrupt":
            raise KeyboardInterrupt
        factor = float("nan") if os.environ.get("ENDS_BY") == "nan" else 1
        return factor * super().loss(logits, target)
"""
CHILD = """
import sys
from pathlib import Path
from autoseg.training import train
from autoseg.workspace import Workspace
raw, preprocessed, results, trainer = map(Path, sys.argv[1:5])
workspace = Workspace(raw=raw, preprocessed=preprocessed, results=results, root=results.parent)
train("Dataset004_Hippocampus", "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=workspace,
      name="shared", trainer=str(trainer), settings={"steps": 1, "observed_cases": 0}, restart=True)
"""


def run(workspace, folds="0", **options):
    options = {"name": "shared", "plans_name": "tiny", "device": "cpu", "workers": 1} | options
    options["settings"] = {"steps": 1, "observed_cases": 0} | options.get("settings", {})
    return train(NAME, "3d_fullres", folds, workspace=workspace, **options)


def content(folder):
    """Return the files of an experiment, hidden ones included, by their content."""
    return {str(path.relative_to(folder)): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def hidden(folder):
    return [path.name for path in folder.parent.glob(".*")]


@pytest.fixture
def ending(tmp_path):
    file = tmp_path / "ending.py"
    file.write_text(ENDING)
    return str(file)


def test_a_restart_that_fails_leaves_the_run_that_was_there(scratch, ending, monkeypatch, tmp_path):
    (folder,) = run(scratch)
    before = content(folder.parent)
    for fault, told in (
        ({"pretrained": tmp_path / "typo"}, "no weights found"),
        ({"trainer": "distillation", "settings": {"teacher": "nonsense"}}, "there is no finished network"),
        ({"trainer": "distillation", "settings": {"teacher": str(folder)}}, "there is no finished network"),  # itself
        ({"pretrained": tmp_path / "typo", "folds": "0,1", "device": "cpu,cpu"}, "no weights found"),
        ({"folds": "0,1", "device": "cpu,cpu", "processes": 2}, "not both"),
        ({"time_budget": 1e-3}, "was over before training began"),
    ):
        with pytest.raises(UserError, match=told):
            run(scratch, restart=True, **fault)
        assert content(folder.parent) == before, fault
        assert hidden(folder) == []
    monkeypatch.setenv("ENDS_BY", "nan")
    with pytest.raises(TrainingFailed):
        run(scratch, restart=True, trainer=ending)
    assert content(folder.parent) == before
    assert hidden(folder) == []


def test_the_earlier_run_goes_with_the_first_checkpoint(scratch, tmp_path):
    watching = tmp_path / "watching.py"
    watching.write_text(
        "from autoseg import Trainer, register\n"
        "@register.trainer('watching')\n"
        "class Watching(Trainer):\n"
        "    def after_step(self, progress):\n"
        "        assert bool(list(self.context.folder.parent.glob('.earlier-*'))) == (self.step == 0)\n"
    )
    (folder,) = run(scratch)
    run(scratch, restart=True, trainer=str(watching), settings={"steps": 3, "checkpoint_minutes": 0})
    assert read_json(folder / "run.json")["steps_done"] == 3
    assert hidden(folder) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_after_a_kill_the_next_command_decides(scratch, ending, monkeypatch, caplog):
    (folder,) = run(scratch)
    before = content(folder.parent)
    places = [str(place) for place in (scratch.raw, scratch.preprocessed, scratch.results)]
    done = subprocess.run([sys.executable, "-c", CHILD, *places, ending], env={**os.environ, "ENDS_BY": "kill"})
    assert done.returncode == -signal.SIGKILL
    assert not (folder / "weights.safetensors").exists()
    run(scratch)  # what was there
    assert content(folder.parent) == before
    assert hidden(folder) == []

    monkeypatch.setenv("ENDS_BY", "interrupt")
    with pytest.raises(KeyboardInterrupt):
        run(scratch, restart=True, trainer=ending)
    assert f"the run that {folder} replaces lies aside" in caplog.text
    monkeypatch.setenv("ENDS_BY", "kill, but not in this process")
    run(scratch, trainer=ending)  # the restart goes on
    assert read_json(folder / "run.json")["method"] == f"{ending}:ending"
    assert hidden(folder) == []
    with pytest.raises(UserError, match="this folder holds a run with "):
        run(scratch)


@pytest.fixture
def stopped(scratch, tmp_path, monkeypatch):
    """Return a function that trains four steps, or is stopped by Ctrl-C `after` some, and returns the folders."""
    file = tmp_path / "stopping.py"
    file.write_text(STOPPING)

    def train_until(after=None, folds="0", **options):
        monkeypatch.setenv("STOPS_AFTER", str(after))
        options = {"trainer": str(file), "settings": {"steps": 4}} | options
        if after is None:
            return run(scratch, folds, **options)
        with pytest.raises(Interrupted, match=f"at step {after}; the checkpoint is complete"):
            run(scratch, folds, **options)
        return None

    return train_until


def test_ctrl_c_keeps_the_run_that_a_restart_replaces(stopped, caplog):
    (folder,) = stopped()
    before = content(folder.parent)
    stopped(2, restart=True)
    assert (folder / "state.pt").is_file()
    assert f"the run that {folder} replaces lies aside" in caplog.text
    stopped()
    assert content(folder.parent) == before
    assert hidden(folder) == []


def test_what_the_command_after_ctrl_c_asks_for_comes_back_or_goes_on(stopped):
    (folder,) = stopped()
    before = content(folder.parent)

    def earlier():
        (lying,) = folder.parent.glob(".earlier-*/fold_0")
        return {f"fold_0/{name}": value for name, value in content(lying).items()}

    stopped(1, restart=True, seed=1)
    assert earlier() == before
    stopped(2, seed=1)  # goes on, and is stopped again
    assert "going on at step 1" in (folder / "log.jsonl").read_text()
    assert earlier() == before
    with pytest.raises(UserError, match="a run with seed 1, not 2"):
        stopped(seed=2)
    assert earlier() == before
    assert read_json(folder / "run.json")["steps_done"] == 2
    stopped(1, seed=1, restart=True)  # begins anew
    assert read_json(folder / "run.json")["steps_done"] == 1
    assert earlier() == before
    stopped()
    assert content(folder.parent) == before
    stopped(1, restart=True, seed=1)
    stopped(seed=1)  # to its end
    assert read_json(folder / "run.json")["seed"] == 1
    assert hidden(folder) == []


def test_a_run_that_goes_on_and_fails_leaves_both(stopped, scratch, tmp_path, caplog):
    (folder,) = run(scratch)
    before = content(folder.parent)
    stopped(2, restart=True)
    with (tmp_path / "stopping.py").open("a") as file:
        file.write("    def loss(self, logits, target):\n        return float('nan') * super().loss(logits, target)\n")
    caplog.clear()
    with pytest.raises(TrainingFailed):
        stopped()
    assert f"the run that {folder} replaces lies aside" in caplog.text
    assert (folder / "state.pt").is_file()
    run(scratch)
    assert content(folder.parent) == before
    assert hidden(folder) == []


def test_the_checkpoint_of_one_fold_leaves_what_the_others_replace(stopped):
    folders = stopped(folds="0,1")
    second = content(folders[1])
    stopped(2, folds="0,1", restart=True, settings={"steps": 3})  # in the first one
    stopped(folds="0", settings={"steps": 3})
    assert len(hidden(folders[0])) == 1
    assert not folders[1].exists()
    stopped(folds="1")
    assert content(folders[1]) == second
    assert read_json(folders[0] / "run.json")["steps_done"] == 3
    assert hidden(folders[0]) == []


def test_what_learnt_nothing_does_not_come_back_for_a_stopped_run(stopped, scratch):
    folder = scratch.run_folder(NAME, "shared", "tiny", "3d_fullres", 0)
    folder.mkdir(parents=True)
    write_run(folder, status="failed", steps_done=0)
    stopped(2, restart=True)
    stopped(3)
    assert read_json(folder / "run.json")["steps_done"] == 3


def test_a_damaged_record_keeps_the_earlier_run(stopped, scratch):
    (folder,) = stopped()
    before = content(folder.parent)
    stopped(2, restart=True)
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        stopped(seed=5)  # neither of both
    assert len(hidden(folder)) == 1
    stopped()
    assert content(folder.parent) == before


def test_the_processes_of_several_devices_replace_their_runs(scratch):
    folders = run(scratch, "0,1")
    run(scratch, "0,1", device="cpu,cpu", restart=True, seed=1)
    assert [read_json(folder / "run.json")["seed"] for folder in folders] == [1, 1]
    assert hidden(folders[0]) == []


@pytest.fixture
def folds(tmp_path):
    """Return three run folders of an experiment."""
    made = [tmp_path / "experiment" / f"fold_{number}" for number in range(3)]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "of").write_text("the earlier run")
    return made


def replace(folder, *, discards=True):
    """Do what a run does at its first checkpoint."""
    assert not folder.exists()
    folder.mkdir()
    write_run(folder, keeps_earlier_run=False)
    (folder / "state.pt").touch()
    if discards:
        discard_earlier(folder)


def end_by(error, folders, *, begun=(), **how):
    with set_aside(folders):
        for folder in begun:
            replace(folder, **how)
        raise error


def test_each_fold_of_a_command_is_discarded_by_its_own_checkpoint(folds):
    with pytest.raises(UserError):
        end_by(UserError("the second fold fails"), folds[:2], begun=folds[:1])
    assert [(folder / "of").exists() for folder in folds] == [False, True, True]
    assert hidden(folds[0]) == []


def test_a_fold_that_another_command_left_aside_is_not_discarded_with_others(folds):
    with pytest.raises(Interrupted):
        end_by(Interrupted("before anything was learnt"), folds[:2])
    assert [folder.exists() for folder in folds] == [False, False, True]
    assert is_to_be_replaced(folds[0], {}, anew=True)
    with set_aside(folds[:1]):
        replace(folds[0])
    assert not is_to_be_replaced(folds[1], {}, anew=False)
    assert [(folder / "of").exists() for folder in folds] == [False, True, True]
    assert hidden(folds[0]) == []


def test_a_kill_between_the_first_checkpoint_and_the_discarding(folds):
    with pytest.raises(KeyboardInterrupt):
        end_by(KeyboardInterrupt(), folds[:1], begun=folds[:1], discards=False)
    assert len(hidden(folds[0])) == 1
    assert not is_to_be_replaced(folds[0], {}, anew=False)
    assert (folds[0] / "state.pt").exists()
    assert hidden(folds[0]) == []


def test_half_a_replacement_never_passes_for_the_run_that_it_replaces(folds):
    """Whatever a kill leaves of the replacement, without its record the earlier run stays."""
    (folds[0] / "weights.safetensors").touch()
    with pytest.raises(KeyboardInterrupt):
        end_by(KeyboardInterrupt(), folds[:1], begun=folds[:1], discards=False)
    (folds[0] / "run.json").unlink()
    is_to_be_replaced(folds[0], {}, anew=False)
    assert (folds[0] / "of").read_text() == "the earlier run"
    assert hidden(folds[0]) == []


@pytest.mark.parametrize("anew", [True, False])
def test_a_replacement_goes_at_once(folds, anew, monkeypatch):
    """Deleted file by file, what a kill leaves could be a checkpoint without its record."""
    (folds[0] / "weights.safetensors").touch()
    with pytest.raises(Interrupted):
        end_by(Interrupted("stopped"), folds[:1])
    folds[0].mkdir()
    write_run(folds[0], keeps_earlier_run=True)
    (folds[0] / "state.pt").touch()
    monkeypatch.setattr("autoseg.training.earlier_run.shutil.rmtree", lambda *args, **options: None)  # killed
    is_to_be_replaced(folds[0], {}, anew=anew)
    assert (folds[0] / "of").exists() != anew
    assert not (folds[0] / "state.pt").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_run(stopped, scratch, monkeypatch):
    (folder,) = stopped()
    before = content(folder.parent)
    stopped(2, restart=True)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autoseg.training.loop.save_state", full)
        with pytest.raises(Exception, match="space"):
            stopped(None, settings={"steps": 4, "checkpoint_minutes": 0}, restart=True)
    stopped()
    assert content(folder.parent) == before


def test_a_linked_run_comes_back_as_it_was(folds):
    real = folds[0].rename(folds[0].parent.parent / "elsewhere")
    folds[0].symlink_to(os.path.join("..", real.name))
    with pytest.raises(UserError):
        end_by(UserError("wrong"), folds[:1])
    assert (folds[0] / "of").read_text() == "the earlier run"
