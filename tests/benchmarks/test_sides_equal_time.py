"""Dice after equal wall time: what is scored, what is told."""

import numpy as np
import pytest
import SimpleITK
from sides import checking, equal_time
from sides.measuring import CommandFailed
from sides.place import Job, Place


@pytest.fixture
def place(tmp_path):
    (tmp_path / "shared" / "data" / equal_time.DATASET).mkdir(parents=True)
    return Place(tmp_path / "work", tmp_path / "shared", "/ours/bin/python", "/theirs/bin/python", 2)


@pytest.fixture
def trained(monkeypatch):
    """Rows by arm and seed instead of trainings; None: it failed."""
    rows = {}
    monkeypatch.setattr(equal_time, "_prepare", lambda *_: None)

    def train(at, raw, arm, seed, minutes):
        if rows[arm, seed] is None:
            return None
        dice, cases = rows[arm, seed]
        return {"arm": arm, "seed": seed, "seconds": 60 * minutes, "steps": 7, "dice": dice, "cases": cases}

    monkeypatch.setattr(equal_time, "_train", train)
    return rows


def test_means_and_seeds_above_are_told(place, trained, capsys):
    cases = {"a.nii.gz": 0.5}
    trained |= {("auto", 0): (0.8, cases), ("auto", 1): (0.7, cases), ("auto", 2): (0.9, cases)}
    trained |= {("nnunet", 0): (0.7, cases), ("nnunet", 1): (0.75, cases), ("nnunet", 2): None}
    found = equal_time.run(place, None, (0, 1, 2), 20.0)
    assert found["means"] == {"auto": 0.8, "nnunet": 0.725}
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [
        ("auto", 0), ("nnunet", 0), ("auto", 1), ("nnunet", 1), ("auto", 2),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "mean: autoseg 0.8000, nnunetv2 0.7250" in said
    assert "autoseg: above nnunetv2 in 1 of 2 seed(s)" in said
    assert "DO NOT AGREE" not in said


def test_scores_of_different_cases_are_told(place, trained, capsys):
    trained |= {("auto", 0): (0.8, {"a.nii.gz": 0.8}), ("nnunet", 0): (0.7, {"b.nii.gz": 0.7})}
    equal_time.run(place, None, (0,), 20.0)
    assert "DO NOT AGREE: the arms were scored on different cases" in capsys.readouterr().out


def test_an_arm_that_failed_is_told_and_has_no_row(place, monkeypatch, capsys):
    def fail(job):
        raise CommandFailed("no memory")

    monkeypatch.setattr(equal_time, "_prepare", lambda *_: None)
    monkeypatch.setattr(Job, "run", fail)
    assert equal_time.run(place, ("nnunet",), (0,), 20.0)["rows"] == []
    assert "nnunetv2" in (said := capsys.readouterr().out)
    assert "failed: no memory" in said


def test_plans_are_made_for_a_whole_cross_validation_of_so_many_minutes(place, monkeypatch):
    commands = []
    monkeypatch.setattr(Job, "run", lambda job: commands.append(job.command))
    equal_time._prepare(place, place.work / "raw", ["auto", "nnunet"], 20.0)
    ours, theirs = commands
    assert ours[ours.index("--time-budget") + 1] == "100m"
    assert theirs[0].endswith("nnUNetv2_plan_and_preprocess")
    assert theirs[theirs.index("-d") + 1] == "4"


def test_the_mean_is_over_the_labels_that_a_case_has_then_over_cases(tmp_path):
    def write(folder, name, values):
        (tmp_path / folder).mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.array([[values]], np.uint8)), tmp_path / folder / name)

    write("references", "a.nii.gz", [1, 1, 2, 2, 0, 0])
    write("predicted", "a.nii.gz", [1, 0, 2, 2, 2, 2])  # 2 * 1 / 3 and 2 * 2 / 6
    write("references", "b.nii.gz", [1, 1, 0, 0, 0, 0])
    write("predicted", "b.nii.gz", [1, 1, 1, 0, 2, 0])  # 2 * 2 / 5; the case has no 2
    found = checking.mean_dice({"predicted": tmp_path / "predicted", "references": tmp_path / "references"})
    assert found["cases"] == pytest.approx({"a.nii.gz": 2 / 3, "b.nii.gz": 0.8})
    assert found["dice"] == pytest.approx((2 / 3 + 0.8) / 2)
