"""How many threads a run takes, and that whoever computes keeps to the cores there are."""

from types import SimpleNamespace

import pytest
import torch

from autoseg import devices
from autoseg.inference import folder
from autoseg.selection import ensembles
from autoseg.training import loop, probe, run, setting_up, train
from autoseg.training.thread_count import AGAIN_SECONDS, SAMPLES, ThreadCount


def drive(seconds_of, steps, state=None):
    """Run `steps` steps that take `seconds_of(threads)`; returns the counts in use and the time."""
    now = [0.0]
    used = []
    chooser = ThreadCount(4, clock=lambda: now[0], apply=used.append)
    for _ in range(steps):
        now[0] += seconds_of(chooser.current, now[0])
        chooser.after_step()
    return chooser, used


def test_the_faster_count_is_kept():
    chooser, used = drive(lambda count, now: 1.0 if count == 4 else 0.2, 2 * SAMPLES + 2)
    assert chooser.current == 2
    assert used == [2]
    chooser, used = drive(lambda count, now: 0.2 if count == 4 else 1.0, 2 * SAMPLES + 2)
    assert chooser.current == 4
    assert used == [2, 4]


def test_it_looks_again_when_the_machine_has_changed():
    def seconds(count, now):
        crowded = now < AGAIN_SECONDS / 2
        return (1.0 if count == 4 else 0.2) if crowded else (0.1 if count == 4 else 0.2)

    chooser, _ = drive(seconds, 1000)
    assert chooser.current == 4


def test_one_core_has_no_choice():
    chooser = ThreadCount(1)
    assert chooser.candidates == [1]
    for _ in range(SAMPLES + 2):
        chooser.after_step()
    assert chooser.current == 1


def test_a_run_its_clock_and_its_choice_keep_to_the_quota(scratch, monkeypatch):
    told = {}
    clock, choice = run.work_clock, loop.ThreadCount
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would hold
    monkeypatch.setattr(devices, "available_cores", lambda: 1)
    monkeypatch.setattr(run, "work_clock", lambda device, threads: told.update(clock=threads) or clock(device, threads))
    monkeypatch.setattr(loop, "ThreadCount", lambda most: told.update(choice=most) or choice(most))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(
            "Dataset004_Hippocampus", "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=scratch,
            settings={"steps": 1, "observed_cases": 0},
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert told == {"clock": 1, "choice": 1}


class Prepared(Exception):
    """Stands for the call that must come before anything is computed."""


CUDA = torch.device("cuda", 1)
FABRIC = SimpleNamespace(device=CUDA)


@pytest.mark.parametrize(
    ("module", "compute", "processes"),
    [
        (setting_up, lambda: setting_up.set_up(SimpleNamespace(context=SimpleNamespace(processes=3)), FABRIC), 3),
        (probe, lambda: probe.time_step(None, None, 1, device="cuda:1"), 1),
        (folder, lambda: folder.predict_folder(SimpleNamespace(device=CUDA), SimpleNamespace(resolve=lambda: 1),
                                               SimpleNamespace(resolve=lambda: 2)), 1),
    ],
)  # fmt: skip
def test_whoever_computes_prepares_torch_before(module, compute, processes, monkeypatch):
    def prepare(device, *, processes=1):
        raise Prepared(device, processes)

    monkeypatch.setattr(module, "prepare_to_compute", prepare)
    with pytest.raises(Prepared) as caught:
        compute()
    assert caught.value.args == (CUDA, processes)


def test_ensembles_prepare_torch(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(ensembles, "prepare_to_compute", told.append)
    plans = SimpleNamespace(configuration=lambda name: SimpleNamespace(data_identifier="x"))
    place = SimpleNamespace(store_folder=lambda *names: tmp_path)
    ensembles.FoldPredictor(SimpleNamespace(plans=plans, configuration="x"), "name", place, device="cpu")
    assert told == [torch.device("cpu")]
