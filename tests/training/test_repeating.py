"""The command that trains a run again, as messages name it."""

import shlex
import shutil
from pathlib import Path

import pytest

from autoseg.cli.durations import parse_duration
from autoseg.cli.running import run
from autoseg.raw import open_dataset
from autoseg.training import train
from autoseg.training.log import read_run
from autoseg.training.repeating import mend_by_training, origin
from autoseg.workspace import Workspace

PLACE = Path("results") / "Dataset001_Liver" / "supervised__auto__2d" / "fold_1"
RECORD = {"method": "supervised", "architecture": "unet", "settings": {}, "seed": 0, "time_budget": None}


def named(kept_as="supervised", plans="auto", **fields):
    folder = PLACE.parent.with_name(f"{kept_as}__{plans}__2d") / PLACE.name
    start = "run: autoseg train Dataset001_Liver 2d 1"
    mend = mend_by_training(folder, {**RECORD, **fields}, restart=False)
    assert mend.startswith(start)
    return mend.removeprefix(start).strip()


def test_what_has_a_default_is_not_named():
    assert named() == ""
    assert mend_by_training(PLACE, RECORD, restart=True).endswith(" 2d 1 --restart")


def test_method_network_and_name_are_named():
    assert named("mean_teacher", method="mean_teacher") == "--trainer mean_teacher"
    assert named("mine", method="/my files/mine.py:mine") == "--trainer '/my files/mine.py:mine'"
    assert named("supervised-swin", architecture="swin") == "--architecture swin"
    assert named("second", "small") == "--name second --architecture unet --plans small"


def test_settings_that_were_given_and_what_else_makes_the_run_are_named():
    settings = {
        "steps": {"value": 5, "origin": "command line"},
        "mirror": {"value": False, "origin": "recipe"},
        "batch_size": {"value": None, "origin": "command line"},
        "optimizer": {"value": "sgd", "origin": "plan"},
    }
    assert named(settings=settings) == "--set steps=5 --set mirror=false --set batch_size=none"
    found = named(seed=3, labelled=10, pretrained="/a/b", deterministic=True)
    assert found == "--labelled 10 --pretrained /a/b --seed 3 --deterministic"
    assert named(time_budget=89.2) == "--time-budget 90s"
    assert parse_duration("90s") == 90


def test_without_a_record_the_place_tells_what_it_can():
    others = ", with the other options of its first start"
    start = "run: autoseg train Dataset001_Liver 2d 1"
    assert mend_by_training(PLACE, restart=True) == f"{start} --restart{others}"
    folder = PLACE.parent.with_name("mean_teacher__auto__2d") / "fold_1"
    assert mend_by_training(folder, restart=False) == f"{start} --trainer mean_teacher{others}"
    folder = PLACE.parent.with_name("my__own__small__2d") / "fold_1"
    assert mend_by_training(folder, restart=False) == f"{start} --name my__own --plans small{others}"


@pytest.mark.parametrize("folder", [Path("elsewhere"), Path("a__b__c") / "copy"])
def test_a_run_that_was_moved_has_no_command(folder):
    assert mend_by_training(folder, RECORD, restart=True) == "repeat the train command of this run with --restart"


def test_the_named_command_is_that_of_the_run(scratch):
    """What it names gives the run that is there, which is finished: nothing is trained."""
    options = {"plans_name": "tiny", "device": "cpu", "workers": 1, "workspace": scratch}
    (folder,) = train(
        scratch.raw / "Dataset004_Hippocampus", "2d", "0", settings={"steps": "1", "batch_size": "none"}, seed=2,
        name="other", architecture="unet", **options,
    )  # fmt: skip
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    record = read_run(folder)
    assert mend_by_training(folder, record, restart=False) == (
        "run: autoseg train Dataset004_Hippocampus 2d 0 --name other --architecture unet --plans tiny "
        "--set batch_size=none --set steps=1 --seed 2"
    )
    train(
        "Dataset004_Hippocampus", "2d", "0", name="other", architecture=record["architecture"],
        settings={"steps": "1", "batch_size": "none"}, seed=2, **options,
    )  # fmt: skip
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before


NAME = "Dataset004_Hippocampus"


@pytest.fixture
def places(tiny, tmp_path, monkeypatch):
    """Return a workspace whose data set lies elsewhere, and that data set; commands run in an empty folder."""
    for name in ("AUTOSEG_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    workspace = tmp_path / "my work"
    workspace.mkdir()
    (workspace / "preprocessed").symlink_to(tiny.preprocessed)
    shutil.copytree(tiny.raw / NAME, tmp_path / "my data" / NAME)
    return workspace, tmp_path / "my data" / NAME


@pytest.fixture
def told_again(capsys):
    """Return a function that runs a command, then what is told to repeat it, which must find the run finished."""
    only_how = ["--device", "cpu", "--workers", "1"]

    def repeat(words, folder, elsewhere=None):
        assert run([*words, *only_how]) == 0
        before = (folder / "weights.safetensors").stat().st_mtime_ns
        told = mend_by_training(folder, read_run(folder), restart=False)
        assert told.startswith("run: autoseg ")
        capsys.readouterr()
        assert run([*shlex.split(told)[2:], *only_how]) == 0
        assert "is finished already" in capsys.readouterr().err
        assert (folder / "weights.safetensors").stat().st_mtime_ns == before
        return told

    return repeat


SHORT = ["--plans", "tiny", "--set", "steps=1", "observed_cases=0"]


def test_the_told_command_finds_data_and_workspace_and_labels(places, told_again):
    workspace, data = places
    folder = workspace / "results" / NAME / "supervised__tiny__2d" / "fold_0"
    words = ["train", str(data), "2d", "0", "--labelled", "2", *SHORT, "--workspace", str(workspace)]
    told = told_again(words, folder)
    assert told == (
        f"run: autoseg train '{data}' 2d 0 --plans tiny --set observed_cases=0 --set steps=1 --labelled 2 "
        f"--workspace '{workspace}'"
    )


def test_what_the_name_and_the_default_find_is_not_told(places, told_again, tiny, monkeypatch):
    workspace, data = places
    (workspace / "raw").symlink_to(data.parent)
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(workspace))
    folder = workspace / "results" / NAME / "supervised__tiny__2d" / "fold_0"
    told = told_again(["train", "4", "2d", "0", *SHORT], folder)
    assert told == f"run: autoseg train {NAME} 2d 0 --plans tiny --set observed_cases=0 --set steps=1"
    monkeypatch.delenv("AUTOSEG_WORKSPACE")
    assert mend_by_training(folder, read_run(folder), restart=False) == f"{told} --workspace '{workspace}'"
    moved = workspace.rename(workspace.with_name("moved"))
    folder = moved / folder.relative_to(workspace)
    assert mend_by_training(folder, read_run(folder), restart=False) == f"{told} --workspace {moved}"


def test_a_run_of_the_default_workspace_is_told_without_it(places, told_again):
    workspace, data = places
    Path("autoseg_workspace").symlink_to(workspace)
    folder = Path("autoseg_workspace") / "results" / NAME / "supervised__tiny__2d" / "fold_0"
    told = told_again(["train", str(data), "2d", "0", *SHORT], folder)
    assert told == f"run: autoseg train '{data}' 2d 0 --plans tiny --set observed_cases=0 --set steps=1"


def test_pretraining_is_told_with_its_own_command(places, told_again):
    workspace, data = places
    folder = workspace / "results" / NAME / "masked_autoencoder__tiny__3d_fullres" / "fold_all"
    words = ["pretrain", str(data), "3d_fullres", "--plans", "tiny", "--set", "steps=1", "sparse=false"]
    told = told_again([*words, "--workspace", str(workspace)], folder)
    method = "3d_fullres --trainer masked_autoencoder --plans tiny --"
    assert told.startswith(f"run: autoseg pretrain '{data}' {method}set ")
    damaged = mend_by_training(folder, restart=True)
    assert damaged.startswith(f"run: autoseg pretrain {NAME} {method}restart")
    older = {name: value for name, value in read_run(folder).items() if name not in ("command", "data", "workspace")}
    assert mend_by_training(folder, older, restart=False).startswith(f"run: autoseg pretrain {NAME} {method}set ")


def test_a_copy_of_a_workspace_is_told_not_the_one_it_was_copied_from(tmp_path):
    """Both have a run of that place; what is wrong with the copy must not make the sound one anew."""
    original, copy = (tmp_path / name / "results" / NAME / "supervised__auto__2d" / "fold_0" for name in ("ws", "copy"))
    for folder in (original, copy):
        folder.mkdir(parents=True)
    told = mend_by_training(copy, {**RECORD, "workspace": str(tmp_path / "ws")}, restart=True)
    assert f"--workspace {tmp_path / 'copy'} --restart" in told


def test_folders_that_no_option_names_are_not_told(scratch):
    options = {"plans_name": "tiny", "device": "cpu", "workers": 1, "workspace": scratch}
    (folder,) = train(NAME, "2d", "0", settings={"steps": 1, "observed_cases": 0}, **options)
    record = read_run(folder)
    assert (record["command"], record["data"], record["workspace"]) == ("train", None, None)


def test_an_open_data_set_is_told_by_its_folder_or_list(places):
    workspace, data = Workspace.open(places[0]), places[1]
    assert origin("train", open_dataset(data), workspace)["data"] == str(data)
    file = data / "listed.csv"
    image = next((data / "imagesTr").iterdir())
    label = data / "labelsTr" / image.name.replace("_0000", "")
    file.write_text(f"image,label\n{image},{label}\n")
    assert origin("train", open_dataset(file), workspace)["data"] == str(file)
