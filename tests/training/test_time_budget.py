"""The accounting of a time budget, with a clock of its own: whatever takes time counts, and nothing untrained ends."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from autoseg import Trainer, plugins
from autoseg.errors import Interrupted, UserError
from autoseg.plans import Plans, TrainingPlan
from autoseg.storage import file_hash, read_json
from autoseg.training import clock, resolving, run, starting, train
from autoseg.training.log import write_run
from autoseg.training.run import is_finished
from autoseg.training.validation_plan import ValidationPlan

NAME = "Dataset004_Hippocampus"
BUDGET = 100.0


class FakeTime:
    """Seconds that pass only where the test lets them."""

    def __init__(self):
        self.now = 1000.0
        self.process_time = time.process_time

    def monotonic(self):
        return self.now

    def takes(self, seconds, result=None):
        def work(*arguments, **options):
            self.now += seconds
            return result

        return work


@pytest.fixture
def fake(monkeypatch):
    """Start-up took 10 s already; looking at validation takes 2 s and finds that it will take 10 s, which it does."""
    fake = FakeTime()
    for module in (clock, run, starting):
        monkeypatch.setattr(module, "time", fake)
    monkeypatch.setattr(resolving, "time_step", lambda *_, **__: SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(run, "plan_validation", fake.takes(2.0, ValidationPlan(seconds=10.0)))
    monkeypatch.setattr(run, "validate", fake.takes(10.0, {"foreground_mean": {}}))
    return fake


def call(workspace, monkeypatch, trainer, folds="0", **options):
    load = plugins.load
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "load", lambda kind, *rest: trainer if kind == "trainer" else load(kind, *rest))
        options = {"plans_name": "tiny", "device": "cpu", "workers": 1, "workspace": workspace} | options
        settings = {"stop_on_collapse": False, "observed_cases": 0}
        return train(NAME, "3d_fullres", folds, settings=settings, **options)


def run_folder(workspace, plans_name="tiny"):
    return workspace.run_folder(NAME, "supervised", plans_name, "3d_fullres", "0")


def test_start_set_up_steps_and_validation_of_all_folds_stay_within_the_budget(scratch, fake, monkeypatch):
    class Steps(Trainer):
        def after_step(self, progress):
            super().after_step(progress)
            fake.now += 2.4  # for two folds, one step more than fits is within 5 % of the budget

    folders = call(scratch, monkeypatch, Steps, "0,1", time_budget=BUDGET, started=fake.now - 10)
    took = fake.now - 1000.0 + 10
    assert 0.95 * BUDGET < took <= 1.05 * BUDGET
    for folder in folders:
        record = read_json(folder / "run.json")
        assert record["status"] == "finished"
        assert record["steps_done"] == 14  # of 2.4 s in the 33 s that are left of 45 s


def test_a_budget_that_is_over_before_training_is_told(scratch, fake, monkeypatch):
    with pytest.raises(UserError, match="budget of 25 s was over before training began: the start took 31 s") as told:
        call(scratch, monkeypatch, Trainer, time_budget=25.0, started=fake.now - 31)
    assert "give more than 31 s" in told.value.mend
    assert not (run_folder(scratch) / "run.json").exists()


def test_a_budget_that_is_over_before_the_first_step_leaves_no_finished_run(scratch, fake, monkeypatch):
    class Slow(Trainer):
        def build_streams(self):
            fake.now += 30
            return super().build_streams()

    with pytest.raises(UserError, match="the 15 s for fold 0 were over before the first step"):
        call(scratch, monkeypatch, Slow, time_budget=25.0, started=fake.now - 10)
    record = read_json(run_folder(scratch) / "run.json")
    assert (record["status"], record["steps_done"]) == ("failed", 0)
    assert not is_finished(run_folder(scratch))
    assert not (run_folder(scratch) / "weights.safetensors").exists()


def test_an_untrained_run_of_an_earlier_version_is_trained_anew(scratch, fake, monkeypatch):
    class Ends(Trainer):
        def after_step(self, progress):
            super().after_step(progress)
            fake.now += BUDGET

    (folder,) = call(scratch, monkeypatch, Ends, time_budget=BUDGET, started=fake.now)
    assert is_finished(folder)
    write_run(folder, steps_done=0)
    assert not is_finished(folder)
    call(scratch, monkeypatch, Ends, time_budget=BUDGET, started=fake.now)
    assert read_json(folder / "run.json")["steps_done"] == 1


class Ends(Trainer):
    """One step takes the whole budget."""

    fake = None

    def after_step(self, progress):
        super().after_step(progress)
        self.fake.now += BUDGET


class Killed(Ends):
    """Like the signal that nobody can answer."""

    def training_step(self, batches, progress):
        raise KeyboardInterrupt


class Stopped(Ends):
    """By Ctrl-C, after its first step."""

    def after_step(self, progress):
        super().after_step(progress)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def timed(scratch, fake, monkeypatch):
    """Return a function that trains within the budget; each call finds other steps fit into that, of a long plan."""
    monkeypatch.setattr(Ends, "fake", fake)
    plans = Plans.read(scratch.plans_file(NAME, "tiny"))
    full = plans.configurations["3d_fullres"].model_copy(update={"training": TrainingPlan()})
    file = scratch.plans_file(NAME, "timed")
    plans.model_copy(update={"plans_name": "timed", "configurations": {"3d_fullres": full}}).write(file)
    seconds = iter(range(10, 1000))
    monkeypatch.setattr(resolving, "time_step", lambda *_, **__: SimpleNamespace(seconds=next(seconds) / 100))

    def within_the_budget(trainer, **options):
        given = {"plans_name": "timed", "time_budget": BUDGET, "started": fake.now}
        return call(scratch, monkeypatch, trainer, **given, **options)

    yield within_the_budget
    file.unlink()


def recipe(folder):
    return read_json(folder / "run.json")["settings"]["warmup_steps"]["value"]


def test_a_timed_run_comes_back_after_a_killed_restart(timed):
    (folder,) = timed(Ends)
    before = {name: file_hash(folder / name) for name in ("state.pt", "weights.safetensors")}
    earlier = recipe(folder)
    with pytest.raises(KeyboardInterrupt):
        timed(Killed, restart=True)
    assert not (folder / "weights.safetensors").exists()
    assert recipe(folder) != earlier
    timed(Ends)
    assert {name: file_hash(folder / name) for name in before} == before
    assert recipe(folder) == earlier
    assert [path.name for path in folder.parent.glob(".*")] == []


def test_a_timed_run_that_replaces_another_goes_on_with_its_own_recipe(timed):
    (folder,) = timed(Ends)
    earlier = recipe(folder)
    with pytest.raises(KeyboardInterrupt):
        timed(Killed, restart=True, seed=1)
    replacing = recipe(folder)
    assert replacing != earlier
    timed(Ends, seed=1)
    assert (recipe(folder), read_json(folder / "run.json")["seed"]) == (replacing, 1)
    assert [path.name for path in folder.parent.glob(".*")] == []


def test_a_stop_after_the_time_between_two_checkpoints_replaces_the_earlier_run(timed, monkeypatch):
    """However often it was stopped before: it has learnt as long as one that is not stopped until its checkpoint."""
    (folder,) = timed(Ends)
    for seed, elapsed, left in ((1, 599, 1), (1, 1, 1), (1, 2, 0)):
        monkeypatch.setattr("test_time_budget.BUDGET", elapsed)
        with pytest.raises(Interrupted):
            timed(Stopped, restart=elapsed == 599, seed=seed)
        assert len(list(folder.parent.glob(".earlier-*/fold_0"))) == left
