"""Commands that messages tell can be pasted where the command ran that told them."""

import os
import shlex
from dataclasses import replace

import pytest

from autoseg.raw import open_dataset, told
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"
PLAN = "plan-and-preprocess"


@pytest.fixture
def raw(shared, tmp_path, monkeypatch):
    """The data set in the raw folder of the default workspace, which is in the current directory."""
    for name in ("AUTOSEG_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "autoseg_workspace" / "raw"
    place.mkdir(parents=True)
    os.symlink(shared / "data" / NAME, place / NAME)
    return place / NAME


def test_the_name_is_enough_in_the_default_workspace(raw):
    assert told(PLAN, open_dataset(raw), Workspace.open(), "-c", "2d") == f"autoseg {PLAN} {NAME} -c 2d"


def test_data_elsewhere_are_told_by_their_path_with_quotes(raw, tmp_path, shared):
    other = tmp_path / "my data" / NAME
    other.parent.mkdir()
    os.symlink(shared / "data" / NAME, other)
    said = told("train", open_dataset(other), Workspace.open("ws 2"), "2d", "0")
    assert shlex.split(said) == ["autoseg", "train", str(other), "2d", "0", "--workspace", str(tmp_path / "ws 2")]


def test_a_folder_of_that_name_in_the_way_makes_it_the_path(raw, tmp_path):
    dataset = open_dataset(raw)
    (tmp_path / NAME).mkdir()
    assert told(PLAN, dataset, Workspace.open()) == f"autoseg {PLAN} {raw}"


def test_a_list_is_told_by_its_file(raw, tmp_path):
    dataset = replace(open_dataset(raw), name="listed", source=tmp_path / "listed.csv")
    assert told(PLAN, dataset, Workspace.open()) == f"autoseg {PLAN} {tmp_path / 'listed.csv'}"


def test_folders_that_variables_name_need_no_option(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "prepared"))
    assert told("train", open_dataset(raw), Workspace.open(), "2d", "0") == f"autoseg train {NAME} 2d 0"


def test_results_elsewhere_matter_to_commands_that_have_some(raw, tmp_path):
    place = replace(Workspace.open(tmp_path / "ws"), results=tmp_path / "campaign")
    dataset = open_dataset(raw)
    assert told(PLAN, dataset, place) == f"autoseg {PLAN} {raw} --workspace {tmp_path / 'ws'}"
    assert told("train", dataset, place, "2d", "0") == f"autoseg train {NAME} 2d 0"  # found by its name all the same
    elsewhere = replace(place, raw=tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    os.symlink(raw.resolve(), elsewhere.raw / NAME)
    found = open_dataset(elsewhere.raw / NAME)
    assert told("train", found, elsewhere, "2d", "0") == f"autoseg train {elsewhere.raw / NAME} 2d 0"
