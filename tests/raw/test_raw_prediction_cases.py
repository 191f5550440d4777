"""What a folder of new images holds."""

import pytest

from autoseg.errors import UserError
from autoseg.raw import list_prediction_cases


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def listed(folder, channels=1, ending=".nii.gz"):
    cases = list_prediction_cases(folder, channels=channels, file_ending=ending)
    return {case.id: [path.name for path in case.images] for case in cases}


def test_numbered_channels(tmp_path):
    touch(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "notes.txt", "._a_0000.nii.gz")
    assert listed(tmp_path, 2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz", "b_0001.nii.gz"]}
    (tmp_path / "b_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"b_0000\.nii\.gz is missing"):
        listed(tmp_path, 2)


def test_hidden_files_are_told_once(tmp_path, caplog):
    touch(tmp_path, "a_0000.nii.gz", "._a_0000.nii.gz", ".writing-xx-a_0000.nii.gz")
    assert listed(tmp_path) == {"a": ["a_0000.nii.gz"]}
    assert not caplog.records
    touch(tmp_path, ".._0000.nii.gz", ".b_0000.nii.gz")
    assert listed(tmp_path) == {"a": ["a_0000.nii.gz"]}
    (record,) = caplog.records
    assert "2 hidden file(s)" in record.message
    assert "'.._0000.nii.gz', '.b_0000.nii.gz'" in record.message


def test_images_of_other_endings_are_told_once(tmp_path, caplog):
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii", "notes.txt")
    assert listed(tmp_path) == {"a": ["a_0000.nii.gz"]}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "1 file(s) do not end with .nii.gz and are left out, such as b_0000.nii" in record.message


def test_plain_names(tmp_path):
    touch(tmp_path, "scan_2020.nii.gz", "x.nii.gz")
    assert listed(tmp_path) == {"scan_2020": ["scan_2020.nii.gz"], "x": ["x.nii.gz"]}
    touch(tmp_path, "y_0000.nii.gz")
    assert listed(tmp_path)["y"] == ["y_0000.nii.gz"]
    touch(tmp_path, "y.nii.gz")
    with pytest.raises(UserError, match="two images would be written as 'y'"):
        listed(tmp_path)


def test_pictures_with_all_channels_in_one_file(tmp_path):
    touch(tmp_path, "p_0000.png", "q_0000.png")
    assert listed(tmp_path, 3, ".png") == {"p": ["p_0000.png"], "q": ["q_0000.png"]}


def test_other_formats_and_single_files(tmp_path):
    touch(tmp_path, "a.nrrd")
    assert listed(tmp_path) == {"a": ["a.nrrd"]}
    assert listed(tmp_path / "a.nrrd") == {"a": ["a.nrrd"]}
    touch(tmp_path, "b.mha")
    with pytest.raises(UserError, match=r"several other formats: \.mha, \.nrrd"):
        listed(tmp_path)
    touch(tmp_path, "c_0000.nii.gz")
    assert listed(tmp_path) == {"c": ["c_0000.nii.gz"]}


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no images"):
        listed(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        listed(tmp_path / "nowhere")
