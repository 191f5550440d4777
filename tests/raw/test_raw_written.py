"""Label maps that cannot be written are told before anything is computed; negative values in NIfTI can be."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.raw import check, open_dataset

LABELS = {"background": 0, "x": 1}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def folder_of(root, ending=".nii.gz", value=1, shape=(12, 13, 14), labels=LABELS, **fields):
    """Write two cases with a block of `value`."""
    for seed, case in enumerate("ab"):
        values = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
        label = np.zeros(shape, np.int16)
        label[3:9, 3:9] = value
        save(root / "imagesTr" / f"{case}_0000{ending}", values)
        save(root / "labelsTr" / f"{case}{ending}", label if ending in (".nii.gz", ".tif") else label.astype(np.uint8))
    content = {"channel_names": {"0": "A"}, "labels": labels, "file_ending": ending} | fields
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def entries(ending):
    return {case: {"images": [f"imagesTr/{case}_0000{ending}"], "label": f"labelsTr/{case}{ending}"} for case in "ab"}


@pytest.mark.parametrize(
    ("ending", "labels", "field", "highest"),
    [
        (".tif", {"background": 0, "x": -1}, "labels.x", 65535),
        (".TIFF", {"background": -1, "x": 1}, "labels.background", 65535),
        (".png", {"background": 0, "x": 1, "y": 65536}, "labels.y", 65535),
        (".bmp", {"background": 0, "x": 1, "y": 256}, "labels.y", 255),
        (".tif", {"background": 0, "x": [1, -1], "y": [1]}, "labels.x", 65535),
    ],
)
def test_values_that_a_format_cannot_hold_are_refused(tmp_path, ending, labels, field, highest):
    data = folder_of(tmp_path, file_ending=ending, labels=labels, dataset=entries(".nii.gz"))
    with pytest.raises(UserError, match=rf"dataset\.json: field {field}: value .* hold 0 to {highest}") as caught:
        open_dataset(data)
    assert "another value" in caught.value.mend


@pytest.mark.parametrize(
    ("ending", "labels"),
    [
        (".png", {"background": 0, "x": 65535, "ignore": -1}),  # what is ignored is never written
        (".bmp", {"background": 255, "x": 0}),
        (".nii.gz", {"background": -1, "x": -(2**40)}),
        (".mha", {"background": 0, "x": -1}),
    ],
)
def test_values_that_it_holds_are_taken(tmp_path, ending, labels):
    data = folder_of(tmp_path, file_ending=ending, labels=labels, dataset=entries(".nii.gz"))
    assert open_dataset(data).file_ending == ending


@pytest.mark.parametrize("ending", [".jpg", ".JPEG"])
def test_label_maps_in_a_lossy_format_are_refused(tmp_path, ending):
    data = folder_of(tmp_path, file_ending=ending, dataset=entries(".nii.gz"))
    with pytest.raises(UserError, match=rf"field file_ending: .*written as {ending}, which loses their values"):
        open_dataset(data)
    assert len(check(data, workers=1).errors) == 1  # not once more, with another mend, since they are volumes


@pytest.mark.parametrize(("ending", "told"), [(".png", True), (".bmp", True), (".tif", False), (".nrrd", False)])
def test_volumes_that_would_be_written_as_pictures_are_told(tmp_path, ending, told):
    data = folder_of(tmp_path, file_ending=ending, dataset=entries(".nii.gz"))
    problems = check(data, workers=1).problems
    assert [(problem.field, problem.value) for problem in problems] == [("file_ending", ending)] * told
    if told:
        assert problems[0].message.startswith("2 image(s) are volumes, such as that of case a,")
        assert problems[0].mend == 'write "file_ending": ".nii.gz"'


def test_flat_images_may_be_written_as_pictures(tmp_path):
    data = folder_of(tmp_path, file_ending=".png", shape=(12, 13), dataset=entries(".nii.gz"))
    assert check(data, workers=1).problems == ()


@pytest.mark.parametrize("ending", [".nii.gz", ".tif"])
def test_an_undeclared_minus_one_is_told_by_check_and_preprocessing(tmp_path, monkeypatch, capfd, ending):
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    data = folder_of(tmp_path / "d", ending, value=-1)
    errors = check(data, workers=1).errors
    assert [(problem.case, problem.field, problem.value) for problem in errors] == [
        ("a", "label values", "[-1]"),
        ("b", "label values", "[-1]"),
    ]
    assert "-1 (" in errors[0].message
    capfd.readouterr()
    assert run(["plan-and-preprocess", str(data), "--workers", "1"]) == 2
    assert f"labelsTr/a{ending}: label value(s) [-1] are not declared" in capfd.readouterr().err


def test_a_declared_minus_one_is_preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    data = folder_of(tmp_path / "d", value=-1, labels={"background": 0, "x": -1, "ignore": -7})
    assert check(data, workers=1).problems == ()
    assert run(["plan-and-preprocess", str(data), "--planner", "nnunet", "-c", "2d", "--workers", "1"]) == 0
