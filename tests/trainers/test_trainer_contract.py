"""Every registered trainer trains on real data, and goes on after a stop as if never stopped."""

import os
import signal

import pytest
import torch

from autoseg import plugins
from autoseg.errors import Interrupted, UserError
from autoseg.storage import read_json
from autoseg.training import Trainer, declared_settings, resolve_settings
from autoseg.training.checkpoint import load_weights
from autoseg.training.log import read_events

TRAINERS = [found.name for found in plugins.list_plugins("trainer")]
QUICK = {"mirror": False, "observed_cases": 1}
SMALL = {"dino": {"width": 48, "depth": 2, "local_crops": 2, "slices": 2}}  # a network of its own, not the plan's


@pytest.fixture
def prepared(run):
    """Return a function that carries out what a trainer builds on, then the trainer itself."""

    def carry_out(name, **options):
        for below in plugins.load("trainer", name).builds_on:
            run(below, settings={"steps": 1, **QUICK})
        return run(name, **options)

    return carry_out


@pytest.mark.parametrize("name", TRAINERS)
def test_trains_two_steps_on_real_data(name, prepared):
    folder = prepared(name, settings={"steps": 2, **QUICK, **SMALL.get(name, {})})
    record = read_json(folder / "run.json")
    assert (record["status"], record["steps_done"], record["trainer"]) == ("finished", 2, name)
    losses = [event["loss"] for event in read_events(folder / "log.jsonl") if event["event"] == "step"]
    assert losses
    assert all(torch.isfinite(torch.tensor(losses)))
    assert load_weights(folder / "weights.safetensors")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, prepared, scratch, tmp_path, monkeypatch):
    settings = {"steps": 5, **QUICK, **SMALL.get(name, {})}
    whole = prepared(name, settings=settings)
    kept = whole.rename(tmp_path / "whole")
    original = plugins.load
    stopping = _stopping(original("trainer", name), after=2)

    def load(kind, reference, *rest):
        return stopping if (kind, reference) == ("trainer", name) else original(kind, reference, *rest)

    monkeypatch.setattr("autoseg.plugins.load", load)
    with pytest.raises(Interrupted, match="step 3"):
        prepared(name, settings=settings)
    monkeypatch.undo()
    resumed = prepared(name, settings=settings)
    assert read_json(resumed / "run.json")["steps_done"] == 5
    one, other = load_weights(kept / "weights.safetensors"), load_weights(resumed / "weights.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in one)
    # The parts that do not predict, too: teachers, heads, mask tokens, optimisers.
    one, other = (torch.load(_body(folder), weights_only=True) for folder in (kept, resumed))
    assert one["modules"].keys() == other["modules"].keys()
    for module, state in one["modules"].items():
        assert all(torch.equal(value, other["modules"][module][tensor]) for tensor, value in state.items())


def _body(folder):
    import io

    content = (folder / "state.pt").read_bytes()
    return io.BytesIO(content[len(b"autoseg-state-1\n") + 32 :])


def _stopping(trainer, after):
    class Stopping(trainer):
        def after_step(self, progress):
            super().after_step(progress)
            if self.step == after:
                os.kill(os.getpid(), signal.SIGTERM)

    return Stopping


@pytest.mark.parametrize("name", TRAINERS)
def test_numbers_that_cannot_be_meant_are_refused(name):
    """No setting of a method here is a number below 0: what is given so is told before any data is touched."""
    trainer = plugins.load("trainer", name)
    for setting in declared_settings(trainer):
        value = getattr(trainer, setting)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            with pytest.raises(UserError, match=rf"setting {setting} cannot be '-1'"):
                resolve_settings(trainer, plan={}, recipe={}, given={setting: "-1"}, base=Trainer)
