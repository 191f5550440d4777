"""Folders and files that have each other's names, and names that are too long, are told once and before the work."""

import os

import pytest
from bad_data import Data, sound

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.evaluation import evaluate
from autoseg.raw import open_dataset
from autoseg.raw.check import check
from autoseg.storage import write_text


@pytest.fixture
def data(tmp_path) -> Data:
    return sound(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "summary.csv"])
def test_a_folder_with_the_name_of_the_scores_is_told_before_the_work(data, name, monkeypatch):
    monkeypatch.setattr("autoseg.evaluation.folders.run_cases", None)
    (data.place / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}: this is a folder with the name of the file of the scores\nTo mend"):
        evaluate(data.label.parent, data.label.parent, output=data.place / "out")
    assert [file.name for file in (data.place / "out").iterdir()] == [name]


def test_scores_do_not_go_into_a_file_or_over_the_description(data, capfd):
    before = data.label.read_bytes(), data.file.read_bytes()
    labels = str(data.label.parent)
    assert run(["evaluate", labels, labels, "--output", str(data.label)]) == 2
    assert (
        f"{data.label}: this is no folder, so no scores can be written into it\nTo mend it: " in capfd.readouterr().err
    )
    assert run(["evaluate", labels, labels, "--output", str(data.file)]) == 2
    assert f"{data.file}: the scores would replace this description\nTo mend it: " in capfd.readouterr().err
    assert (data.label.read_bytes(), data.file.read_bytes()) == before


def test_a_file_that_cannot_be_written_for_its_name_is_told_with_the_mend(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for target in (tmp_path / "folder", tmp_path / "file" / "new", tmp_path / "file" / "folder" / "new"):
        with pytest.raises(UserError, match=r"the file cannot be written .*\nTo mend it: ") as caught:
            write_text(target, "text")
        assert caught.value.where == str(target)
    assert {file.name for file in tmp_path.iterdir()} == {"folder", "file"}


def test_a_name_that_is_too_long_is_told_as_such(data):
    name = "b" * 235
    data.image.rename(data.image.with_name(f"{name}_0000.nii.gz"))
    data.label.rename(data.label.with_name(f"{name}.nii.gz"))
    with pytest.raises(UserError, match="b' cannot become a file name: it is too long, 235 bytes of at most 220"):
        open_dataset(data.folder)


@pytest.mark.parametrize("name", ["imagesTr", "labelsTr", "imagesTs"])
@pytest.mark.parametrize("kind", ["file", "link to itself"])
def test_what_only_has_the_name_of_a_folder_is_told_once(data, name, kind):
    place = data.folder / name
    if place.exists():
        place.rename(data.folder / "elsewhere")
    place.touch() if kind == "file" else place.symlink_to(name)
    (problem,) = check(data.folder).errors
    says = "this is a file with the name of a folder" if kind == "file" else "the link leads to no folder"
    assert (problem.file, problem.message) == (os.fspath(place), says)
