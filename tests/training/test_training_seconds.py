"""Runs that end by the clock of training itself: what counts, where they end, how they are annealed and go on."""

import time

import pytest
import torch

from autoseg import Trainer, plugins
from autoseg.errors import Interrupted, UserError
from autoseg.storage import read_json
from autoseg.training import clock, train
from autoseg.training.clock import Clock, work_clock

NAME = "Dataset004_Hippocampus"
SETTINGS = {"stop_on_collapse": False, "observed_cases": 0, "steps": 7, "warmup_steps": 0}


class Work:
    """Seconds of work that pass only where a step lets them."""

    def __init__(self, monkeypatch):
        self.now = 50.0
        monkeypatch.setattr("autoseg.training.run.work_clock", lambda *_: lambda: self.now)


@pytest.fixture
def work(monkeypatch):
    return Work(monkeypatch)


def call(workspace, monkeypatch, trainer, seconds, **options):
    load = plugins.load
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "load", lambda kind, *rest: trainer if kind == "trainer" else load(kind, *rest))
        (folder,) = train(NAME, "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=workspace,
                          settings=SETTINGS, training_seconds=seconds, **options)  # fmt: skip
    return read_json(folder / "run.json")


def taking(work, seconds, rates=None):
    class Steps(Trainer):
        def after_step(self, progress):
            super().after_step(progress)
            work.now += seconds
            if rates is not None:
                rates.append((progress, self.schedule(progress)))

    return Steps


@pytest.mark.parametrize(
    ("step", "limit", "steps"),
    [
        (2.0, 20.0, 10),
        (3.0, 20.0, 7),  # 21 s are nearer than 18 s
        (3.2, 20.0, 6),  # 19.2 s are nearer than 22.4 s
        (8.0, 20.0, 2),  # or 3: as near
        (30.0, 20.0, 1),
        (90.0, 20.0, 1),
    ],
)
def test_a_run_ends_with_the_step_nearest_to_its_seconds(scratch, monkeypatch, work, step, limit, steps):
    record = call(scratch, monkeypatch, taking(work, step), limit)
    assert (record["status"], record["steps_done"]) == ("finished", steps)  # whatever the setting `steps` says


def test_the_schedule_follows_the_seconds(scratch, monkeypatch, work):
    seen = []
    call(scratch, monkeypatch, taking(work, 2.0, seen), 20.0)
    assert [progress for progress, _ in seen] == pytest.approx([step / 10 for step in range(10)])
    assert [factor for _, factor in seen] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(10)])


def test_a_stopped_run_goes_on_with_the_seconds_that_are_left(scratch, monkeypatch, work):
    class Stops(taking(work, 2.0)):
        def after_step(self, progress):
            super().after_step(progress)
            if self.step == 3:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        call(scratch, monkeypatch, Stops, 20.0)
    work.now = 0.0  # another process, whose clock began anew
    seen = []
    record = call(scratch, monkeypatch, taking(work, 2.0, seen), 20.0)
    assert record["steps_done"] == 10
    assert seen[0][0] == pytest.approx(0.4)


def test_processor_time_of_all_threads_counts_on_a_cpu_and_waiting_does_not(monkeypatch):
    monkeypatch.setattr(clock, "time", fake := type("", (), {"process_time": lambda: 30.0, "monotonic": lambda: 7.0}))
    on_cpu, on_gpu = (work_clock(torch.device(kind), 4) for kind in ("cpu", "cuda"))
    assert (on_cpu(), on_gpu()) == (7.5, 7.0)
    fake.monotonic = lambda: 1007.0
    assert (on_cpu(), on_gpu()) == (7.5, 1007.0)


def test_without_a_limit_steps_or_the_budget_decide():
    assert Clock(10, None).progress(5) == 0.5
    assert Clock(10, 1000.0, elapsed_before=250.0).progress(5) == pytest.approx(0.25, abs=0.01)
    assert Clock(10, None, limit=1000.0, worked_before=250.0).progress(5) == pytest.approx(0.25, abs=0.01)


def test_a_clock_and_determinism_exclude_each_other(scratch):
    with pytest.raises(UserError, match="--set steps"):
        train(NAME, "3d_fullres", "0", plans_name="tiny", training_seconds=5.0, deterministic=True, workspace=scratch)


def test_real_seconds_of_the_processor_end_a_run(scratch, monkeypatch):
    before = time.process_time()
    record = call(scratch, monkeypatch, Trainer, 1.5)
    spent = time.process_time() - before
    assert record["steps_done"] > 1
    assert record["cpu_seconds"] <= spent
    assert 1.2 < record["cpu_seconds"] / torch.get_num_threads() < 2.5
