"""Where things are on disk."""

from pathlib import Path

import pytest

from autoseg.errors import UserError
from autoseg.workspace import Workspace


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("AUTOSEG_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace.open(tmp_path / "work")
    for name in ("Dataset004_Hippocampus", "Dataset104_EM_Membrane", "Dataset1234_Big"):
        (workspace.raw / name).mkdir(parents=True)
    return workspace


def test_default_then_environment_then_argument(monkeypatch, tmp_path):
    assert Workspace.open().raw == Path("autoseg_workspace/raw")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nn_raw"))
    assert Workspace.open().raw == tmp_path / "nn_raw"
    assert Workspace.open().results == Path("autoseg_workspace/results")
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "env"))
    assert Workspace.open().raw == tmp_path / "env" / "raw"
    assert Workspace.open(tmp_path / "given").results == tmp_path / "given" / "results"


def test_empty_environment_variable_is_no_workspace(monkeypatch):
    monkeypatch.setenv("AUTOSEG_WORKSPACE", "")
    assert Workspace.open().root == Path("autoseg_workspace")


@pytest.mark.parametrize("reference", ["4", "004", "Dataset004_Hippocampus", "Hippocampus"])
def test_dataset_by_number_or_name(workspace, reference):
    assert workspace.find_dataset(reference).name == "Dataset004_Hippocampus"


def test_dataset_with_underscore_and_four_digits(workspace):
    assert workspace.find_dataset("EM_Membrane").name == "Dataset104_EM_Membrane"
    assert workspace.find_dataset("1234").name == "Dataset1234_Big"


def test_dataset_by_path(workspace, tmp_path):
    cases = tmp_path / "cases.csv"
    cases.write_text("image,label\n")
    assert workspace.find_dataset(cases) == cases


def test_unknown_dataset_lists_the_known(workspace):
    with pytest.raises(UserError, match=r"no data set '40'.*Dataset004_Hippocampus, Dataset104_EM_Membrane"):
        workspace.find_dataset("40")


@pytest.mark.parametrize("reference", ["105", "Nuclei"])
def test_a_dataset_that_was_preprocessed_from_elsewhere_is_told_as_that(workspace, reference):
    (workspace.preprocessed / "Dataset105_Nuclei").mkdir(parents=True)
    with pytest.raises(UserError, match=f"no data set '{reference}'") as told:
        workspace.find_dataset(reference)
    assert told.value.mend == (
        "Dataset105_Nuclei is preprocessed, but its raw data are not in this workspace: give their path"
    )


def test_ambiguous_dataset_is_refused_with_both(workspace):
    (workspace.raw / "Dataset204_Hippocampus").mkdir()
    (workspace.raw / "Dataset0004_Other").mkdir()
    for reference, names in (("Hippocampus", "Dataset004.*Dataset204"), ("4", "Dataset0004_Other.*Dataset004_Hip")):
        with pytest.raises(UserError, match=f"fits several data sets: {names}"):
            workspace.find_dataset(reference)
    assert workspace.find_dataset("204").name == "Dataset204_Hippocampus"


def test_folders_are_those_of_the_design(tmp_path):
    workspace = Workspace.open(tmp_path)
    name = "Dataset004_Hippocampus"
    assert workspace.plans_file(name, "auto") == tmp_path / "preprocessed" / name / "plans" / "auto.json"
    assert workspace.store_folder(name, "auto_2d") == tmp_path / "preprocessed" / name / "auto_2d"
    run = workspace.run_folder(name, "supervised", "auto", "2d", 3)
    assert run == tmp_path / "results" / name / "supervised__auto__2d" / "fold_3"
    assert workspace.model_folder(name) == tmp_path / "results" / name / "model"


def test_selected_model_by_name_number_or_path(workspace, tmp_path):
    with pytest.raises(UserError, match="no selected models fit '4'; data sets with a model: none"):
        workspace.find_model("4")
    model = workspace.model_folder("Dataset004_Hippocampus")
    model.mkdir(parents=True)
    for reference in ("4", "Hippocampus", "Dataset004_Hippocampus", workspace.raw / "Dataset004_Hippocampus"):
        assert workspace.find_model(reference) == model
    workspace.model_folder("cases").mkdir(parents=True)
    (tmp_path / "cases.csv").write_text("image,label\n")
    assert workspace.find_model(tmp_path / "cases.csv") == workspace.model_folder("cases")
    with pytest.raises(UserError, match="no selected models fit '104'; data sets with a model: Dataset004"):
        workspace.find_model("104")
