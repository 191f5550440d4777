"""Cases whose names are one on some systems, or stand in training and testing, and files that nothing reads."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from autoseg.raw import check
from autoseg.raw.names import on_disk

ONE, TWO = "Fall \u00e4", "Fall a\u0308"  # the same letters in two Unicode forms


def image(path, seed, kind=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 200, (8, 9, 10)).astype(kind)
    nibabel.save(nibabel.Nifti1Image(values // 100 if kind == np.uint8 else values, np.eye(4)), path)
    return path


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "D"
    for seed, case in enumerate("ab"):
        image(root / "imagesTr" / f"{case}_0000.nii.gz", seed)
        image(root / "labelsTr" / f"{case}.nii.gz", seed, np.uint8)
    content = {"channel_names": {"0": "A"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def listed(data, *names, **fields):
    """Name the two cases in a list, so that the disk of the test need not tell the names apart."""
    cases = [
        {"case": name, "image": f"imagesTr/{file}_0000.nii.gz", "label": f"labelsTr/{file}.nii.gz", **fields}
        for name, file in zip(names, "ab", strict=True)
    ]
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | {"cases": cases}))


def test_names_that_are_one_on_disk():
    assert on_disk("Case_A") == on_disk("case_a")
    assert on_disk(ONE) == on_disk(TWO) != on_disk("Fall a")
    assert on_disk("STRASSE") == on_disk("straße")


@pytest.mark.parametrize(
    ("names", "how", "shown"),
    [
        (("case_A", "case_a"), "letter case", "'case_A'"),
        ((TWO, ONE), "Unicode form", r"'Fall a\u0308'"),
    ],
)
def test_cases_whose_names_are_one_on_some_systems_are_told(data, names, how, shown):
    listed(data, *names)
    report = check(data, workers=1)
    assert report.ok
    (problem,) = report.problems
    assert (problem.case, problem.value) == (names[1], names[0])
    assert f"differs from that of case {shown} by its {how}" in problem.message
    assert problem.file.endswith("imagesTr/b_0000.nii.gz")
    assert problem.mend == "rename one of the two cases"


def test_so_are_unlabelled_ones_beside_labelled_ones_and_those_for_testing(data):
    image(data / "imagesUn" / "A_0000.nii.gz", 5)
    assert [(p.case, p.value) for p in check(data, workers=1).problems] == [("A", "a")]
    shutil.rmtree(data / "imagesUn")
    listed(data, "c", "C", split="test")
    assert [(p.case, p.value) for p in check(data, workers=1).warnings] == [("c", "C")]


@pytest.mark.parametrize("name", ["a", "A"])
def test_a_name_in_training_and_testing_is_told(data, name):
    image(data / "imagesTs" / f"{name}_0000.nii.gz", 5)
    report = check(data, workers=1)
    assert report.ok
    (problem,) = report.problems
    assert (problem.case, problem.severity) == (name, "warning")
    assert problem.file.endswith(f"imagesTs/{name}_0000.nii.gz")
    assert problem.message == "one of the training cases has this name, too: imagesTr/a_0000.nii.gz"
    assert "if they show one patient" in problem.mend


def test_so_is_one_of_an_unlabelled_case(data):
    for folder, seed in (("imagesUn", 5), ("imagesTs", 6)):
        image(data / folder / "c_0000.nii.gz", seed)
    (problem,) = check(data, workers=1).problems
    assert "one of the unlabelled cases has this name" in problem.message


def test_a_copy_of_a_training_image_under_its_own_name_is_told_as_a_leak(data):
    (data / "imagesTs").mkdir()
    shutil.copy(data / "imagesTr" / "a_0000.nii.gz", data / "imagesTs")
    messages = [problem.message for problem in check(data, workers=1).problems]
    assert "the same image as case a; one is for training, one for testing" in messages


def test_classes_of_a_test_case_with_the_name_of_a_training_case_do_not_count(data):
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "x": 1, "y": 2}}))
    image(data / "imagesTs" / "a_0000.nii.gz", 5)
    path = image(data / "labelsTs" / "a.nii.gz", 5, np.uint8)
    values = np.asarray(nibabel.load(path).dataobj) * 2
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    assert [p.field for p in check(data, workers=1).problems if "occurs in no training case" in p.message] == [
        "labels.y"
    ]


def test_a_case_in_training_and_among_the_unlabelled_is_an_error(data):
    image(data / "imagesUn" / "a_0000.nii.gz", 5)
    (problem,) = check(data, workers=1).errors
    assert (problem.case, problem.message) == ("a", "two cases have this name")


@pytest.mark.parametrize("name", ["imagesTr/c_0000.NII.GZ", "imagesTr/c_0000.nii", "labelsTr/a.nii"])
@pytest.mark.parametrize("beside", [True, False])
def test_images_of_another_ending_are_told(data, name, beside):
    path = data / (name if beside else name.replace("Tr/", "Ts/"))
    source = image(data / "image.nii", 7)
    path.parent.mkdir(exist_ok=True)
    source.rename(path)
    (path.parent / "notes.txt").touch()
    (path.parent / "._b.nii").touch()
    report = check(data, workers=1)
    assert report.ok
    (problem,) = report.problems
    assert (problem.file, problem.field) == (str(path), "file_ending")
    assert f"1 file(s) do not end with .nii.gz and are left out, such as {path.name}" in problem.message
    assert problem.mend
