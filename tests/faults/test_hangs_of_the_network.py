"""A step of the network that does not end is told while it lasts: what, since when, and where in the program."""

import os
import threading

import pytest
from bad_data import sound
from model_factory import write_model

from autoseg import deadlines, watching
from autoseg.deadlines import step_seconds
from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.training import train
from autoseg.watching import watched
from autoseg.workers import run_cases

HANGS = """
from autoseg import register
from autoseg.training import Trainer
from test_hangs_of_the_network import hang

@register.trainer("hangs")
class Hangs(Trainer):
    def loss(self, logits, segmentation):
        if self.step == 2:
            hang()
        return logits.float().square().mean()
"""
told = threading.Event()


def hang():
    assert told.wait(20), "nobody told of it"


@pytest.fixture
def messages(monkeypatch):
    """What the watch says; whatever hangs goes on once it said something."""
    said = []

    def note(message, *arguments):
        said.append(message % arguments)
        if "it is at wait, threading.py:" in said[-1]:  # not of other work that a busy machine is slow at
            told.set()

    told.clear()
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watching, "_watch", None)  # one that looks that often
    monkeypatch.setattr(watching, "_interpreter", None)
    monkeypatch.setattr(watching, "_usual", {})  # other tests did such steps
    monkeypatch.setattr(watching.log, "warning", note)
    yield said
    if watching._interpreter is not None:
        watching._interpreter.close(os.getpid())  # its limits are not those of other tests


def test_a_tile_that_does_not_end_is_told_with_its_case(tmp_path, messages, monkeypatch):
    monkeypatch.setattr(deadlines, "FIRST_STEP_SECONDS", 0.05)
    data = sound(tmp_path)
    predictor = Predictor.load(write_model(tmp_path / "model"), device="cpu")
    predictor.members[0].networks[0].register_forward_pre_hook(lambda *_: hang())
    results = predictor.predict_folder(data.image.parent, tmp_path / "out")
    assert [(result.case, result.error) for result in results] == [("bad", None), ("good", None)]
    said = next(message for message in messages if "it is at wait, threading.py:" in message)
    assert said.startswith("prediction, case bad, tile 1 of ")
    assert ": no sign of life for " in said
    assert "Nothing is stopped; Ctrl-C ends the command" in said
    assert said.endswith("If a step may take longer, set AUTOSEG_STEP_SECONDS")


def test_a_training_step_that_does_not_end_is_told(place, tmp_path, messages, monkeypatch):
    monkeypatch.setattr(deadlines, "STEP_SECONDS", 0.2)
    monkeypatch.setattr(deadlines, "USUAL_STEPS", 1e-6)
    (tmp_path / "hangs.py").write_text(HANGS)
    train(
        "Dataset004_Hippocampus", "3d_fullres", "0", trainer=str(tmp_path / "hangs.py"), plans_name="tiny",
        settings={"steps": 4, "observed_cases": 0}, device="cpu", workers=1, workspace=place,
    )  # fmt: skip
    assert told.is_set()
    assert any(said.startswith("training, fold 0, step 2: no sign of life for ") for said in messages)
    assert any(" s (usually " in said for said in messages)


def test_a_case_that_does_not_end_in_the_commands_own_process_is_told(messages, monkeypatch):
    monkeypatch.setattr(deadlines, "FIRST_STEP_SECONDS", 0.05)
    (result,) = run_cases(lambda _: hang(), ["a"], stage="checking", workers=1, size_of=len)
    assert result.error is None
    assert any(said.startswith("case a, checking: no sign of life for ") for said in messages)


def test_how_long_is_long_depends_on_the_usual_step(monkeypatch):
    assert step_seconds(None) == 600
    assert step_seconds(0.5) == 120
    assert step_seconds(30.0) == 600
    monkeypatch.setenv("AUTOSEG_STEP_SECONDS", "7")
    assert step_seconds(None) == step_seconds(30.0) == 7


def test_a_wrong_time_is_told_before_the_work_begins(monkeypatch):
    monkeypatch.setattr(watching, "_watch", None)
    monkeypatch.setenv("AUTOSEG_STEP_SECONDS", "soon")
    with pytest.raises(UserError, match="AUTOSEG_STEP_SECONDS: 'soon' is no number"), watched("x"):
        raise AssertionError("the work began")


def at_work(*works):
    worker = watching._Worker([watching._Work(text, kind, silent, 0.0) for text, kind, silent in works])
    return worker


def test_it_is_told_ever_more_rarely_and_not_of_those_who_wait(messages):
    worker = at_work(("training, fold 0", None, False))
    for now in range(0, 3000, 10):
        watching._tell(0, worker, float(now))
    assert [message.split(" for ")[1][:6] for message in messages] == ["600 s.", "1200 s", "2400 s"]
    messages.clear()
    worker = at_work(("training, fold 0", None, False), ("waiting for the other processes", None, True))
    watching._tell(0, worker, 1e6)
    assert messages == []


def test_work_that_goes_on_is_not_told(messages):
    with watched("outer"):
        (worker,) = watching._workers.values()
        before = worker.heard
        with watched("inner", kind="x"):
            assert [work.text for work in worker.works] == ["outer", "inner"]
        assert worker.heard > before
    assert watching._workers == {}
    assert messages == []
