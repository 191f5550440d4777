"""The accounting of a time budget, with a clock of its own: whatever takes time counts, and nothing untrained ends."""

import time
from types import SimpleNamespace

import pytest

from autoseg import Trainer, plugins
from autoseg.errors import UserError
from autoseg.storage import read_json
from autoseg.training import clock, run, starting, train
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
    monkeypatch.setattr(starting, "time_step", lambda *_, **__: SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(run, "plan_validation", fake.takes(2.0, ValidationPlan(seconds=10.0)))
    monkeypatch.setattr(run, "validate", fake.takes(10.0, {"foreground_mean": {}}))
    return fake


def call(workspace, monkeypatch, trainer, folds="0", **options):
    load = plugins.load
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "load", lambda kind, *rest: trainer if kind == "trainer" else load(kind, *rest))
        return train(NAME, "3d_fullres", folds, plans_name="tiny", device="cpu", workers=1, workspace=workspace,
                     settings={"stop_on_collapse": False, "observed_cases": 0}, **options)  # fmt: skip


def run_folder(workspace):
    return workspace.run_folder(NAME, "supervised", "tiny", "3d_fullres", "0")


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
