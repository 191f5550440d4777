"""Preprocessed data that no longer are what plans and raw files say: told before anything is learned from them."""

import json
import os

import numpy as np
import pytest
from bad_data import sound

from autoseg.cli.running import run
from autoseg.preprocessing.agreement import check_agreement
from autoseg.raw import open_dataset
from autoseg.store import CaseStore
from autoseg.workspace import Workspace


@pytest.fixture
def planned(tmp_path, monkeypatch, capfd):
    """A preprocessed data set of two cases: its files, and those of its plans."""
    data = sound(tmp_path)
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    planning = ["--planner", "nnunet", "--gpu-memory", "1", "-c", "3d_fullres", "--workers", "1"]
    assert run(["plan-and-preprocess", str(data.folder), *planning]) == 0
    capfd.readouterr()
    return data, tmp_path / "w" / "preprocessed" / "data" / "plans" / "nnunet.json"


def train(data):
    settings = ["--set", "steps=1", "--set", "mirror=false", "--set", "observed_cases=0"]
    return run(["train", str(data.folder), "3d_fullres", "0", "--plans", "nnunet", "--device", "cpu", *settings])


def test_another_spacing_in_the_plans_is_refused_until_it_is_preprocessed(planned, capfd):
    data, file = planned
    plans = json.loads(file.read_text())
    del plans["autoseg_checksum"]
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.25, 1.0]
    file.write_text(json.dumps(plans))
    assert train(data) == 2
    said = capfd.readouterr().err
    assert "was preprocessed to (" in said
    assert "with the spacing (1.0, 1.25, 1.0) of configuration '3d_fullres' it has (" in said
    assert f"To mend it: run: autoseg plan-and-preprocess {data.folder} --keep-plans --plans-name nnunet" in said
    again = ["plan-and-preprocess", str(data.folder), "--keep-plans", "--plans-name", "nnunet", "--workers", "1"]
    assert run(again) == 0
    assert json.loads(file.read_text()) == plans
    assert train(data) == 0


@pytest.mark.parametrize("changes", ["image", "label", "normalisation"])
def test_files_and_settings_that_changed_since_are_told(planned, caplog, changes):
    data, file = planned
    caplog.clear()
    plans = json.loads(file.read_text())
    if changes == "normalisation":
        plans["configurations"]["3d_fullres"]["normalization"] = ["rescale_to_0_1"]
        del plans["autoseg_checksum"]
        file.write_text(json.dumps(plans))
    else:
        path = data.image if changes == "image" else data.label
        data.voxels(path, np.zeros_like)
        os.utime(path, ns=(1, 1))
    assert agreement(file) is None
    cases = 2 if changes == "normalisation" else 1
    assert f"{cases} of 2 case(s), such as bad, were preprocessed from files that have changed since" in caplog.text


@pytest.mark.parametrize("touched", [False, True])
def test_what_is_as_it_was_is_not_told(planned, caplog, touched):
    caplog.clear()
    if touched:
        os.utime(planned[0].image, ns=(1, 1))
        os.utime(planned[0].label, ns=(2, 2))
    assert agreement(planned[1]) is None
    said = [record.getMessage() for record in caplog.records]
    read = "reading 2 raw file(s) whose size or times are new, to see whether their content is"
    assert said == ([read] if touched else [])


def agreement(file):
    from autoseg.plans import Plans

    place = Workspace.open(file.parents[3])
    plans = Plans.read(file)
    chosen = plans.configuration("3d_fullres")
    store = CaseStore(place.store_folder("data", chosen.data_identifier))
    return check_agreement(store, open_dataset(file.parents[4] / "data"), plans, chosen, place)


def test_planning_and_keeping_plans_exclude_each_other(planned, capfd):
    data, _ = planned
    assert run(["plan-and-preprocess", str(data.folder), "--keep-plans", "--gpu-memory", "8"]) == 2
    assert "--gpu-memory plans anew, while --keep-plans takes the plans that are there" in capfd.readouterr().err
