"""The way of the data through the commands, on a made-up data set with tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoseg.conformance.tiny_workspace import DATASET, PLANS, make_workspace
from autoseg.raw import read_label

PLANNER = '''"""Tiny."""
from autoseg import Planner, register


@register.planner("smallest")
class Smallest(Planner):
    """Networks of four channels."""

    base_features: int = 4
    max_features_2d: int = 8
    max_features_3d: int = 8
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    make_workspace(root)
    return root


@pytest.fixture(scope="module")
def trained(tiny):
    from autoseg.training import train

    for configuration in ("2d", "3d_fullres"):
        train(DATASET, configuration, "cv", plans_name=PLANS, settings={"steps": 4}, device="cpu", workspace=tiny)
    return tiny


def test_check(autoseg, tiny):
    assert json.loads(autoseg("check", DATASET, "--workspace", tiny, "--json").out)["ok"] is True
    assert autoseg("check", tiny / "raw" / DATASET).code == 0


def test_check_finds_every_fault_in_one_table(autoseg, shared):
    faults = {
        "wrong_shape": "hippocampus_149",
        "truncated_gzip": "hippocampus_171",
        "undeclared_label": "hippocampus_252",
        "missing_label": "hippocampus_141",
    }
    for folder, case in faults.items():
        outcome = autoseg("check", shared / "data" / "bad_input" / folder)
        assert outcome.code == 2
        assert case in outcome.out
        found = json.loads(autoseg("check", shared / "data" / "bad_input" / folder, "--json").out)
        assert {problem["case"] for problem in found["problems"] if problem["severity"] == "error"} == {case}


def test_plan_and_preprocess_with_a_planner_file(autoseg, tiny, tmp_path):
    (tmp_path / "smallest.py").write_text(PLANNER)
    arguments = ("plan-and-preprocess", DATASET, "--planner", tmp_path / "smallest.py", "--workspace", tiny)
    outcome = autoseg(*arguments, "-c", "2d", "3d_fullres", "--plans-name", "mine", "--gpu-memory", "2", "--json")
    assert outcome.code == 0
    result = json.loads(outcome.out)
    assert result["plans"].endswith(f"preprocessed/{DATASET}/plans/mine.json")
    assert set(result["configurations"]) == {"2d", "3d_fullres"}
    assert (tiny / "preprocessed" / DATASET / "mine_3d_fullres" / "index.json").is_file()
    table = autoseg(*arguments, "-c", "2d", "--plans-name", "mine")
    assert table.out.splitlines()[0].split() == [
        "configuration",
        "spacing",
        "(mm)",
        "patch",
        "batch",
        "network",
        "steps",
    ]


def test_wrong_configuration_and_setting_are_told(autoseg, tiny):
    wrong = autoseg("train", DATASET, "3d_low", "0", "--plans", PLANS, "--workspace", tiny)
    assert (wrong.code, "no configuration '3d_low'" in wrong.err) == (2, True)
    wrong = autoseg("train", DATASET, "2d", "0", "--plans", PLANS, "--workspace", tiny, "--set", "step=4")
    assert (wrong.code, "did you mean" in wrong.err, "steps" in wrong.err) == (2, True, True)
    wrong = autoseg("train", DATASET, "2d", "0-", "--plans", PLANS, "--workspace", tiny)
    assert (wrong.code, "folds '0-' are not understood" in wrong.err) == (2, True)


def test_train_prints_what_became_of_the_run(autoseg, tiny):
    line = ("train", DATASET, "2d", "all", "--plans", PLANS, "--workspace", tiny, "--set", "steps=2", "--device", "cpu")
    first = autoseg(*line, "--json")
    assert first.code == 0
    (record,) = json.loads(first.out)
    assert (record["status"], record["steps_done"], record["fold"]) == ("finished", 2, "all")
    assert record["settings"]["steps"] == {"value": 2, "origin": "command line"}
    again = autoseg(*line)
    assert "finished already" in again.err
    assert again.out.splitlines()[0].split() == ["fold", "status", "steps", "seconds", "Dice", "folder"]


def test_find_best_predict_evaluate_report(autoseg, trained, tmp_path):
    best = autoseg("find-best", DATASET, "--workspace", trained, "--no-ensembles", "--device", "cpu", "--json")
    assert best.code == 0
    result = json.loads(best.out)
    assert result["selection"]["best"] in ("2d", "3d_fullres")
    shown = autoseg("find-best", DATASET, "--workspace", trained, "--no-ensembles", "--device", "cpu")
    assert "chosen: " in shown.out

    images = trained / "raw" / DATASET / "imagesUn"
    predicted = autoseg("predict", "-i", images, "-o", tmp_path / "out", "-d", "Tiny", "--workspace", trained, "--json")
    assert predicted.code == 0
    assert [(entry["case"], entry["error"]) for entry in json.loads(predicted.out)] == [
        ("case_5", None),
        ("case_6", None),
    ]
    label, _ = read_label(tmp_path / "out" / "case_5.nii.gz")
    assert (label.shape, set(np.unique(label)) <= {0, 1, 2}) == ((12, 20, 16), True)
    again = autoseg("predict", "-i", images, "-o", tmp_path / "out", "-m", result["model"], "--json")
    assert all(entry["skipped"] for entry in json.loads(again.out))

    description = trained / "raw" / DATASET / "dataset.json"
    scored = autoseg("evaluate", tmp_path / "out", tmp_path / "out", "--dataset-json", description, "--json")
    assert scored.code == 0
    assert set(json.loads(scored.out)["cases"]) == {"case_5", "case_6"}
    missing = autoseg(
        "evaluate", tmp_path / "out", trained / "raw" / DATASET / "labelsTr", "--dataset-json", description
    )
    assert missing.code != 0

    report = json.loads(autoseg("report", DATASET, "--workspace", trained, "--json").out)["report"]
    assert "<html" in Path(report).read_text(encoding="utf-8")


def test_a_failing_case_is_listed_and_the_rest_goes_on(autoseg, trained, tmp_path):
    autoseg("find-best", DATASET, "--workspace", trained, "--no-ensembles", "--device", "cpu")
    images = tmp_path / "images"
    images.mkdir()
    for file in (trained / "raw" / DATASET / "imagesUn").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    broken = images / "case_5_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    outcome = autoseg("predict", "-i", images, "-o", tmp_path / "out", "-d", DATASET, "--workspace", trained)
    assert outcome.code == 1
    assert "case_5" in outcome.err
    assert "1 of 2 case(s) segmented" in outcome.out
    assert (tmp_path / "out" / "case_6.nii.gz").is_file()
    assert not (tmp_path / "out" / "case_5.nii.gz").exists()
