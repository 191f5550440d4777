"""Real child processes: answers, errors, deaths, and what they plan."""

import json
import logging
import sys

import pytest

from autoseg.benchmarking import child, children
from autoseg.benchmarking.children import Task, carry_out, what_is_left
from autoseg.plans import Plans
from autoseg.store import CaseStore

NAME = "Dataset004_Hippocampus"
DEADLY = '''
"""A network that ends the process."""
import os
import signal

from autoseg import Architecture, register


@register.architecture("deadly")
class Deadly(Architecture):
    """For a test."""

    def __init__(self, spec):
        os.kill(os.getpid(), signal.SIGKILL)
'''


def workspace_of(place, results):
    folders = {"raw": place.raw, "preprocessed": place.preprocessed, "results": results, "root": place.root}
    return {name: str(path) for name, path in folders.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_a_child_that_dies_and_one_that_is_refused(tiny, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "recipe.toml").write_text("learning_rate = 0.01\n")
    request = {
        "dataset": str(tiny.raw / NAME), "configuration": "2d", "workspace": workspace_of(tiny, tmp_path / "runs"),
        "trainer": "supervised", "plans_name": "tiny", "architecture": str(tmp_path / "deadly.py"),
        "recipe": str(tmp_path / "recipe.toml"), "fold": "0", "settings": {},
    }  # fmt: skip
    tasks = [Task("a/deadly", "measure", request), Task("a/refused", "measure", {**request, "configuration": "4d"})]
    outcomes = {}

    def done(task, outcome):
        outcomes[task.key] = outcome

    carry_out(tasks, done, folder=tmp_path, jobs=2, threads=1, devices=["cpu"])
    assert outcomes["a/deadly"].died
    assert "was killed by SIGKILL, perhaps for lack of memory" in outcomes["a/deadly"].error
    assert not outcomes["a/refused"].died
    assert "no configuration '4d'" in outcomes["a/refused"].error
    assert not list(tmp_path.glob("work/*.json"))


def test_what_takes_long_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(children, "TELL_SECONDS", 0.05)
    caplog.set_level("INFO")
    carry_out([Task("a/b", "measure", {})], lambda *_: None, folder=tmp_path, jobs=1, threads=1, devices=["cpu"])
    told = [record.getMessage() for record in caplog.records if "a/b" in record.getMessage()]
    assert len(told) >= 2
    assert told[0] == "a/b: its timing of steps is under way for 0 s"


def test_what_is_left_in_words():
    tasks = [Task(str(number), "train", {}) for number in range(4)]
    assert (
        what_is_left(tasks, tasks[:2], tasks[2:3])
        == "1 run under way, which keeps its checkpoint, and 2 runs not begun"
    )
    assert what_is_left(tasks, [], tasks) == "4 runs under way, which keep their checkpoints"
    assert what_is_left(tasks, tasks[:1], []) == "1 run not begun"
    plans = [Task("a", "plan", {}), Task("b", "plan", {})]
    assert what_is_left(plans, plans[:1], plans[1:]) == "1 plan under way, and 1 plan not begun"


def test_plans_of_different_networks_share_their_data(place):
    from autoseg.preprocessing import preprocess
    from autoseg.raw import open_dataset

    request = {
        "dataset": str(place.raw / NAME), "configuration": "2d", "workspace": workspace_of(place, place.results),
        "planner": "nnunet", "architecture": "unet", "gpu_memory": 2.0, "time_budget": None,
        "plans_name": "c-unet", "device": "cpu", "network_options": {},
    }  # fmt: skip
    found = child.plan(request)
    plans = Plans.read(place.plans_file(NAME, "c-unet"))
    assert list(plans.configurations) == ["2d"]
    assert plans.configurations["2d"].architecture == "unet"
    assert found["store"] == plans.configurations["2d"].data_identifier
    assert found["store"].startswith("benchmark_2d_")
    assert found == json.loads(json.dumps(found))
    (folder,) = preprocess(open_dataset(place.raw / NAME), plans, place, workers=1)
    assert len(CaseStore(folder).cases) == 6
    other = {"plans_name": "again", "architecture": "unet_plus_plus", "network_options": {"style": "paper"}}
    again = child.plan({**request, **other})
    assert Plans.read(place.plans_file(NAME, "again")).configurations["2d"].network.options["style"] == "paper"
    assert again["store"] == found["store"]
    assert again["digest"] != found["digest"]


def test_answers_of_the_entry_point(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "_follow_parent", lambda: None)
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps({"kind": "unknown"}))
    assert child.main(str(request), str(answer)) == 1
    assert "unknown" in json.loads(answer.read_text())["error"]
    log = logging.getLogger("somewhere")
    monkeypatch.setitem(child.KINDS, "echo", lambda asked: [log.warning("no %s", each) for each in "aab"] and asked)
    request.write_text(json.dumps({"kind": "echo", "value": 3}))
    assert child.main(str(request), str(answer)) == 0
    found = json.loads(answer.read_text())
    assert found == {"result": {"kind": "echo", "value": 3}, "warnings": ["no a", "no b"]}


def test_a_message_that_cannot_be_made_is_no_reason_to_fail(capsys):
    warnings = child.Warnings()
    warnings.emit(logging.LogRecord("somewhere", logging.WARNING, "file.py", 1, "odd", (3,), None))
    assert "not all arguments converted" in capsys.readouterr().err
    assert warnings.texts == {}
    warnings.emit(logging.LogRecord("somewhere", logging.WARNING, "file.py", 1, "%s is odd", ("\udcff.nii",), None))
    assert list(warnings.texts) == ["\\udcff.nii is odd"]  # JSON can hold it
