"""The check names every fault of the faulty data sets, and finds none where there is none."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.raw import check, open_dataset, read_label
from autoseg.raw.case_check import count_values

FAULTS = {
    "wrong_shape": ("hippocampus_149", "labelsTr/hippocampus_149.nii.gz", r"shape \(29, 49, 33\).*\(32, 49, 33\)"),
    "mismatched_affine": ("hippocampus_319", "labelsTr/hippocampus_319.nii.gz", r"affine.*1\.5.*mm"),
    "truncated_gzip": ("hippocampus_171", "imagesTr/hippocampus_171_0000.nii.gz", "truncated"),
    "nan_voxels": ("hippocampus_166", "imagesTr/hippocampus_166_0000.nii.gz", "48 NaN and 1 infinite"),
    "undeclared_label": ("hippocampus_252", "labelsTr/hippocampus_252.nii.gz", r"7 \(27 voxels\)"),
    "fractional_label": ("hippocampus_143", "labelsTr/hippocampus_143.nii.gz", r"not integers, such as 1\.5"),
    "missing_label": ("hippocampus_141", "imagesTr/hippocampus_141_0000.nii.gz", "no label map"),
    "mixed_png": ("sem_8rgba", "imagesTr/sem_8rgba_0000.png", r"3 channel\(s\).*1 channel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_with_its_file(shared, name):
    import re

    case, file, message = FAULTS[name]
    report = check(shared / "data" / "bad_input" / name, workers=1)
    assert not report.ok
    (problem,) = report.errors
    assert problem.case == case
    assert problem.file.endswith(f"{name}/{file}")
    assert re.search(message, problem.message)
    assert problem.mend
    table = report.table()
    assert file in table
    assert "1 error(s)" in table


def test_warnings_do_not_fail(shared):
    report = check(shared / "data" / "bad_input" / "empty_label", workers=1)
    assert report.ok
    (problem,) = report.warnings
    assert (problem.case, problem.severity) == ("hippocampus_177", "warning")
    assert "empty" in problem.message
    depth = check(shared / "data" / "bad_input" / "mixed_png", workers=1).warnings
    assert [(problem.case, problem.value) for problem in depth] == [("sem_16gray", "uint16")]


@pytest.mark.parametrize(
    "number", [4, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 119]
)
def test_sound_data_sets_have_no_problem(shared, number):
    (folder,) = (shared / "data").glob(f"Dataset{number:03d}_*")
    report = check(folder, workers=2 if number in (4, 110) else 1)
    assert report.problems == ()
    expected = json.loads((folder / "dataset.json").read_text())
    assert report.num_cases >= expected["numTraining"]
    assert report.table() == report.summary


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def sound(tmp_path):
    root = tmp_path / "D"
    rng = np.random.default_rng(0)
    for case in "abc":
        save(root / "imagesTr" / f"{case}_0000.nii.gz", rng.normal(size=(8, 9, 10)).astype(np.float32))
        save(root / "imagesTr" / f"{case}_0001.nii.gz", rng.normal(size=(8, 9, 10)).astype(np.float32))
        save(root / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    content = {
        "channel_names": {"0": "A", "1": "B"},
        "labels": {"background": 0, "x": 1, "y": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_all_problems_at_once(sound):
    assert check(sound, workers=1).problems == ()
    content = json.loads((sound / "dataset.json").read_text())
    content |= {"numTraining": "three", "groups": 5}
    (sound / "dataset.json").write_text(json.dumps(content))
    (sound / "imagesTr" / "a_0000.nii.gz").write_bytes(b"no image")
    save(sound / "imagesTr" / "b_0001.nii.gz", np.zeros((8, 9, 11), np.float32))
    save(sound / "labelsTr" / "c.nii.gz", np.full((8, 9, 10), 9, np.uint8))
    report = check(sound, workers=1)
    told = {(problem.case, problem.field or problem.file.rsplit("/", 1)[-1]) for problem in report.errors}
    assert told >= {("", "numTraining"), ("", "groups"), ("a", "a_0000.nii.gz"), ("b", "b_0001.nii.gz")}
    assert ("c", "label values") in told
    assert {problem.field for problem in report.warnings} >= {"voxels", "labels.y"} or report.warnings
    assert report.as_dict()["ok"] is False
    json.dumps(report.as_dict())


def test_bad_labels_do_not_hide_bad_files(sound):
    content = json.loads((sound / "dataset.json").read_text())
    (sound / "dataset.json").write_text(json.dumps(content | {"labels": {"x": 1}}))
    (sound / "imagesTr" / "a_0000.nii.gz").write_bytes(b"no image")
    fields = {(problem.case, problem.field) for problem in check(sound, workers=1).errors}
    assert fields == {("", "labels"), ("a", "")}


def test_double_images_constant_images_and_unused_classes(sound):
    for channel in "01":
        shutil.copy(sound / f"imagesTr/a_000{channel}.nii.gz", sound / f"imagesTr/b_000{channel}.nii.gz")
    for channel in "01":
        (sound / "imagesTs").mkdir(exist_ok=True)
        shutil.copy(sound / f"imagesTr/c_000{channel}.nii.gz", sound / f"imagesTs/t_000{channel}.nii.gz")
    for case in "abc":
        save(sound / "labelsTr" / f"{case}.nii.gz", np.eye(10, dtype=np.uint8)[:8, :9, None].repeat(10, 2))
    report = check(sound, workers=1)
    assert report.ok
    told = {problem.case: problem.message for problem in report.warnings}
    assert told["b"] == "the same image as case a"
    assert "one is for training, one for testing" in told["t"]
    assert "class 'y'" in told[""]
    save(sound / "imagesTr" / "c_0000.nii.gz", np.full((8, 9, 10), 4, np.float32))
    assert any("all voxels have the value 4" in problem.message for problem in check(sound, workers=1).warnings)


def test_fix_geometry_puts_a_cropped_label_onto_the_image(sound):
    path = sound / "labelsTr" / "a.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj)
    shift = np.eye(4)
    shift[:3, 3] = (2, 1, 3)
    save(path, label[2:6, 1:8, 3:9], shift)
    (problem,) = check(sound, workers=1).errors
    assert problem.field == "shape"
    assert "--fix-geometry" in problem.mend
    report = check(sound, workers=1, fix_geometry=True)
    assert report.ok
    assert "the original is kept" in report.warnings[0].message
    expected = np.zeros_like(label)
    expected[2:6, 1:8, 3:9] = label[2:6, 1:8, 3:9]
    assert np.array_equal(read_label(path)[0], expected.T)
    assert nibabel.load(sound / "labelsTr_original" / "a.nii.gz").shape == (4, 7, 6)
    assert check(sound, workers=1).problems == ()


def test_fix_geometry_never_loses_a_class(sound):
    path = sound / "labelsTr" / "a.nii.gz"
    label = np.zeros((8, 9, 10), np.uint8)
    label[0, 0, 0] = 1
    shift = np.eye(4)
    shift[:3, 3] = (-3, 0, 0)
    save(path, label, shift)
    (problem,) = check(sound, workers=1, fix_geometry=True).errors
    assert "[1] would vanish" in problem.message
    assert np.array_equal(read_label(path)[0], label.T)
    shift[:3, 3] = (300, 0, 0)
    save(path, label, shift)
    (problem,) = check(sound, workers=1, fix_geometry=True).errors
    assert "no place in common" in problem.message


def test_2d_and_3d_do_not_mix(sound):
    for name in ("imagesTr/c_0000", "imagesTr/c_0001", "labelsTr/c"):
        save(sound / f"{name}.nii.gz", np.arange(72, dtype=np.uint8).reshape(8, 9) % 3)
    (problem,) = (problem for problem in check(sound, workers=1).errors if problem.field == "dims")
    assert (problem.case, problem.value) == ("c", "2D")


def test_unreadable_description_is_a_problem_and_a_missing_data_set_an_error(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    report = check(tmp_path)
    assert "not valid JSON" in report.problems[0].message
    with pytest.raises(UserError, match="no data set"):
        check(tmp_path / "nowhere")


def test_count_values():
    label = np.array([[3, -1, 3], [0, 3, 70000]], dtype=np.int32)
    assert list(count_values(label)) == [(-1, 1), (0, 1), (3, 3), (70000, 1)]
    assert list(count_values(label[:, :2])) == [(-1, 1), (0, 1), (3, 2)]
    assert list(count_values(np.array([200, 255], dtype=np.uint8))) == [(200, 1), (255, 1)]
    assert list(count_values(np.array([-100, 100], dtype=np.int8))) == [(-100, 1), (100, 1)]


def test_voxels_of_classes_that_are_not_annotated(sound):
    content = json.loads((sound / "dataset.json").read_text())
    (sound / "dataset.json").write_text(json.dumps(content | {"annotated": {"a": ["x"], "b": ["x", "y"]}}))
    label = np.zeros((8, 9, 10), np.uint8)
    label[0, 0, :3], label[1] = 2, 1
    save(sound / "labelsTr" / "a.nii.gz", label)
    report = check(sound, workers=1)
    assert report.ok
    (problem,) = report.warnings
    assert (problem.case, problem.field, problem.value) == ("a", "annotated", "y")
    assert problem.message == "3 voxel(s) of class 'y', which is not listed as annotated in this case"
    assert problem.mend == "list the class as annotated, or remove its voxels"


def test_regions_that_are_not_annotated(sound):
    content = json.loads((sound / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "annotated": {"a": ["core"], "b": ["whole"]}}
    (sound / "dataset.json").write_text(json.dumps(content))
    found = [(problem.case, problem.value) for problem in check(sound, workers=1).warnings]
    assert found == [("a", "whole")]


def test_an_ignore_label_outside_of_labels_is_told(sound):
    content = json.loads((sound / "dataset.json").read_text())
    (sound / "dataset.json").write_text(json.dumps(content | {"ignore": 2}))
    (problem,) = check(sound, workers=1).errors
    assert (problem.field, problem.value) == ("ignore", "2")
    assert "the ignore label belongs inside labels" in problem.message
    with pytest.raises(UserError, match="the ignore label belongs inside labels"):
        open_dataset(sound)
    content["labels"]["ignore"] = content["labels"].pop("y")
    (sound / "dataset.json").write_text(json.dumps(content))
    assert check(sound, workers=1).ok
