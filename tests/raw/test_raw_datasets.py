"""Folders, Decathlon folders, variants and lists become data sets; names and fields are checked."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.raw import open_dataset, read_image
from autoseg.raw.description import parse_description
from autoseg.workspace import Workspace

LABELS = {"background": 0, "liver": 1, "tumour": 2}


def save(path, shape=(4, 5, 6), value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array.flat[:7] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def folder_of(root, cases=("a", "b", "c"), **fields):
    for case in cases:
        save(root / "imagesTr" / f"{case}_0000.nii.gz")
        save(root / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": len(cases), "file_ending": ".nii.gz"}
    content = {name: value for name, value in (content | fields).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_real_folder(shared):
    dataset = open_dataset(shared / "data" / "Dataset004_Hippocampus")
    assert (len(dataset.cases), len(dataset.test), len(dataset.unlabelled)) == (200, 10, 1)
    assert dataset.labels.names == ("Anterior", "Posterior")
    assert dataset.name == "Dataset004_Hippocampus"
    first = dataset.cases[0]
    assert (first.id, first.images[0].name) == ("hippocampus_001", "hippocampus_001_0000.nii.gz")
    assert dataset.test[0].label.parent.name == "labelsTs"


def test_tables_and_texts_of_real_folders(shared):
    cardiac = {case.id: case for case in open_dataset(shared / "data/Dataset112_CardiacACDC").cases}
    assert cardiac["patient002_ED"].group == cardiac["patient002_ES"].group == "patient002"
    assert cardiac["patient002_ES"].attributes["phase"] == "ES"
    polyp = open_dataset(shared / "data/Dataset101_PolypMultiCentre")
    assert all(case.text.endswith("colonoscopy image") for case in polyp.cases)
    assert {case.attributes["domain"] for case in polyp.cases} >= {"kvasir", "clinicdb"}
    chest = open_dataset(shared / "data/Dataset107_ChestXrayLungs")
    assert all(case.attributes["sex"] in ("M", "F") for case in chest.cases if "sex" in case.attributes)
    assert "The nuclei" in open_dataset(shared / "data/Dataset106_MoNuSegText").cases[0].text


def test_by_name_and_number_in_a_workspace(tmp_path):
    folder_of(tmp_path / "raw" / "Dataset042_Liver")
    workspace = Workspace.open(tmp_path)
    for reference in ("42", "Dataset042_Liver", "Liver"):
        assert open_dataset(reference, workspace).name == "Dataset042_Liver"
    with pytest.raises(UserError, match="no data set '43'"):
        open_dataset("43", workspace)


def test_variant_with_scribbles_and_without_copies(shared, tmp_path):
    raw = shared / "data" / "Dataset112_CardiacACDC"
    labels = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3, "ignore": 4}
    variant = tmp_path / "Dataset912_Scribbles.json"
    variant.write_text(json.dumps({"folder": str(raw), "labels": labels, "labels_folder": "scribblesTr"}))
    dataset = open_dataset(variant)
    assert dataset.name == "Dataset912_Scribbles"
    assert dataset.channel_names == ("cine MRI",)
    assert dataset.labels.ignore == (4,)
    assert {case.label.parent.name for case in dataset.cases} == {"scribblesTr"}
    assert dataset.cases[0].group == "patient002"
    assert {case.label.parent.name for case in dataset.test} == {"labelsTs"}


def test_variant_with_regions_and_a_relative_folder(tmp_path):
    folder_of(tmp_path / "Dataset001_A", regions_class_order=[1, 2])
    (tmp_path / "regions.json").write_text(
        json.dumps({"folder": "Dataset001_A", "labels": {"background": 0, "whole": [1, 2], "core": [2]}})
    )
    dataset = open_dataset(tmp_path / "regions.json")
    assert dataset.labels.regions
    assert dataset.labels.paint_order == ("whole", "core")
    (tmp_path / "regions.json").write_text(json.dumps({"folder": "Dataset002_B"}))
    with pytest.raises(UserError, match=r"regions\.json: field folder names .*Dataset002_B"):
        open_dataset(tmp_path / "regions.json")


def test_annotated_and_groups(tmp_path):
    root = folder_of(tmp_path / "D", annotated={"a": ["liver"], "b": []}, groups={"a": "p1", "b": "p1", "c": 7})
    cases = open_dataset(root).cases
    assert [case.annotated for case in cases] == [("liver",), (), None]
    assert [case.group for case in cases] == ["p1", "p1", "7"]
    folder_of(tmp_path / "D", annotated={"a": ["spleen"]})
    with pytest.raises(UserError, match=r"annotated\.a.*spleen"):
        open_dataset(root)
    folder_of(tmp_path / "D")
    (root / "cases.csv").write_text("case,subject,annotated\na,p9,liver; tumour\nb,p9,\n")
    cases = open_dataset(root).cases
    assert [(case.group, case.annotated) for case in cases] == [("p9", ("liver", "tumour")), ("p9", None), (None, None)]


def test_a_table_moves_images_to_testing_and_to_the_unlabelled(tmp_path):
    root = folder_of(tmp_path / "D")
    names = [case.id for case in open_dataset(root).cases]
    assert names == ["a", "b", "c"]
    (root / "cases.csv").write_text("case,split\na,test\nb,unlabelled\nc,val\n")
    dataset = open_dataset(root)
    assert [(case.id, case.split) for case in dataset.cases] == [("c", "val")]
    assert [case.id for case in dataset.unlabelled] == ["b"]
    assert [(case.id, case.label.name) for case in dataset.test] == [("a", "a.nii.gz")]


def test_no_table_brings_a_test_image_into_training(tmp_path):
    root = folder_of(tmp_path / "D")
    save(root / "imagesTs" / "t_0000.nii.gz")
    save(root / "labelsTs" / "t.nii.gz")
    (root / "cases.csv").write_text("case,split\nt,train\n")
    dataset = open_dataset(root)
    assert "t" not in [case.id for case in dataset.cases]
    assert [case.split for case in dataset.test] == ["test"]


def test_decathlon_folder(tmp_path):
    root = tmp_path / "Task99_Two"
    for case in ("x_1", "x_2"):
        save(root / "imagesTr" / f"{case}.nii.gz", (4, 5, 6, 2))
        save(root / "labelsTr" / f"{case}.nii.gz")
    save(root / "imagesTs" / "x_3.nii.gz", (4, 5, 6, 2))
    pairs = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("x_2", "x_1")]
    content = {
        "modality": {"0": "FLAIR", "1": "T1"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "numTraining": 2,
        "training": pairs,
        "test": ["./imagesTs/x_3.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    dataset = open_dataset(root)
    assert [case.id for case in dataset.cases] == ["x_1", "x_2"]
    assert [case.id for case in dataset.test] == ["x_3"]
    assert dataset.channel_names == ("FLAIR", "T1")
    assert dataset.labels.values == {"edema": (1,), "core": (2,)}
    assert dataset.file_ending == ".nii.gz"
    assert dataset.description["labels"] == {"background": 0, "edema": 1, "core": 2}
    assert read_image(dataset.cases[0].images, channels=2).data.shape == (2, 6, 5, 4)
    (root / "labelsTr/x_1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labelsTr/x_1\.nii\.gz: the file does not exist"):
        open_dataset(root)


@pytest.mark.parametrize("value", ["--1", "\u00b2", "-", "9" * 5000])
def test_label_values_that_only_look_like_numbers_are_told(tmp_path, value):
    problems = parse_description({"labels": {"0": "background", value: "a"}}, Path("dataset.json")).problems
    assert any(problem.field == "labels" for problem in problems)


def test_nnunet_field_dataset(tmp_path):
    root = folder_of(tmp_path / "D")
    save(tmp_path / "elsewhere" / "i.nii.gz")
    entry = {"images": ["../elsewhere/i.nii.gz"], "label": "labelsTr/a.nii.gz"}
    folder_of(root, dataset={"z": entry}, numTraining=1)
    (case,) = open_dataset(root).cases
    assert (case.id, case.images[0].is_file()) == ("z", True)


def test_csv_list(tmp_path):
    folder_of(tmp_path / "D")
    (tmp_path / "list.json").write_text(json.dumps({"labels": LABELS}))
    (tmp_path / "list.csv").write_text(
        "case,image_T1,image_T2,label,patient,split,text,annotated,age\n"
        "one,D/imagesTr/a_0000.nii.gz,D/imagesTr/b_0000.nii.gz,D/labelsTr/a.nii.gz,p1,train,a cat,liver;tumour,61\n"
        "two,D/imagesTr/b_0000.nii.gz,D/imagesTr/b_0000.nii.gz,D/labelsTr/b.nii.gz,p2,val,,,\n"
        "three,D/imagesTr/c_0000.nii.gz,D/imagesTr/b_0000.nii.gz,,,,,,\n"
        "four,D/imagesTr/c_0000.nii.gz,D/imagesTr/b_0000.nii.gz,D/labelsTr/b.nii.gz,,test,,,\n"
    )
    dataset = open_dataset(tmp_path / "list.csv")
    assert dataset.name == "list"
    assert dataset.channel_names == ("T1", "T2")
    one, two = dataset.cases
    assert (one.group, one.split, one.text, one.annotated) == ("p1", "train", "a cat", ("liver", "tumour"))
    assert one.attributes == {"age": "61"}
    assert [path.name for path in one.images] == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert (two.split, two.annotated, two.attributes) == ("val", None, {})
    assert [case.id for case in dataset.unlabelled] == ["three"]
    assert [case.id for case in dataset.test] == ["four"]


def test_json_list(tmp_path):
    folder_of(tmp_path / "D")
    cases = [
        {"image": "D/imagesTr/a_0000.nii.gz", "label": "D/labelsTr/a.nii.gz", "attributes": {"age": 61}},
        {"case": "q", "images": ["D/imagesTr/b_0000.nii.gz"], "split": "unlabelled"},
    ]
    content = {"channel_names": ["MRI"], "labels": LABELS, "cases": cases}
    (tmp_path / "l.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path / "l.json")
    assert [(case.id, case.attributes) for case in dataset.cases] == [("a", {"age": 61})]
    assert [case.id for case in dataset.unlabelled] == ["q"]
    assert dataset.description["channel_names"] == {"0": "MRI"}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".hidden", "a\nb", " ", "a\0b"])
def test_case_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder_of(tmp_path / "D")
    entry = {"case": name, "image": "D/imagesTr/a_0000.nii.gz", "label": "D/labelsTr/a.nii.gz"}
    content = {"channel_names": ["MRI"], "labels": LABELS, "cases": [entry]}
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cases\[0\].*cannot become a file name"):
        open_dataset(tmp_path / "l.json")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("case,label\na,b\n", "no column image"),
        ("case,image\na,missing.nii.gz\n", r"missing\.nii\.gz: .*does not exist"),
        ("case,image\na,D/imagesTr/a_0000.nii.gz,x,y\n", "line 2 has more fields"),
        ("case,image,split\na,D/imagesTr/a_0000.nii.gz,dev\n", "split 'dev'"),
        ("image,image\n", "same heading"),
        (
            "case,image,label\n" + "a,D/imagesTr/a_0000.nii.gz,D/labelsTr/a.nii.gz\n" * 2,
            "two cases have this name",
        ),
    ],
)
def test_faulty_lists(tmp_path, rows, message):
    folder_of(tmp_path / "D")
    (tmp_path / "list.json").write_text(json.dumps({"labels": LABELS}))
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path / "list.csv")


def test_list_without_labels_says_where_to_write_them(tmp_path):
    folder_of(tmp_path / "D")
    (tmp_path / "list.csv").write_text("image,label\nD/imagesTr/a_0000.nii.gz,D/labelsTr/a.nii.gz\n")
    with pytest.raises(UserError, match=r"list\.json"):
        open_dataset(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_names": "CT"}, "field channel_names"),
        ({"channel_names": {"1": "CT"}}, "field channel_names"),
        ({"channel_names": {"0": 5}}, "field channel_names"),
        ({"channel_names": None}, "field channel_names"),
        ({"labels": None}, "labels"),
        ({"labels": {"liver": 1}}, "background"),
        ({"labels": {"background": 0, "liver": "one"}}, "liver"),
        ({"file_ending": ".xyz"}, "field file_ending"),
        ({"file_ending": 7}, "field file_ending"),
        ({"file_ending": None}, "field file_ending"),
        ({"file_ending": ".nrrd"}, r"no file that ends with \.nrrd; files there end with \.nii\.gz"),
        ({"numTraining": "three"}, "field numTraining"),
        ({"groups": ["a"]}, "field groups"),
        ({"annotated": {"a": "liver"}}, "field annotated"),
        ({"labels_folder": 3}, "field labels_folder"),
        ({"labels_folder": "nowhere"}, "no label map"),
    ],
)
def test_wrong_fields_are_named(tmp_path, fields, message):
    root = folder_of(tmp_path / "D", **fields)
    with pytest.raises(UserError, match=message):
        open_dataset(root)


@pytest.mark.parametrize("text", ["", "[]", '{"labels"', "\xff"])
def test_broken_json(tmp_path, text):
    root = folder_of(tmp_path / "D")
    (root / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset\.json"):
        open_dataset(root)


def test_missing_and_superfluous_files(tmp_path):
    root = folder_of(tmp_path / "D", channel_names={"0": "A", "1": "B"})
    for case in "abc":
        save(root / "imagesTr" / f"{case}_0001.nii.gz")
    assert len(open_dataset(root).cases[0].images) == 2
    (root / "imagesTr" / "b_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"b_0000\.nii\.gz is missing"):
        open_dataset(root)
    save(root / "imagesTr" / "b_0000.nii.gz")
    save(root / "imagesTr" / "b_0002.nii.gz")
    with pytest.raises(UserError, match=r"b_0002\.nii\.gz: the file is channel 2, but 2"):
        open_dataset(root)
    (root / "imagesTr" / "b_0002.nii.gz").unlink()
    save(root / "labelsTr" / "d.nii.gz")
    with pytest.raises(UserError, match=r"labelsTr/d\.nii\.gz: the label map has no image"):
        open_dataset(root)
    (root / "labelsTr" / "d.nii.gz").unlink()
    save(root / "imagesTr" / "e.nii.gz")
    with pytest.raises(UserError, match=r"e\.nii\.gz: the file name is not CASE_0000"):
        open_dataset(root)
    (root / "imagesTr" / "e.nii.gz").rename(root / "imagesTr" / "._e_0000.nii.gz")
    assert len(open_dataset(root).cases) == 3


def test_folder_without_description(tmp_path):
    with pytest.raises(UserError, match=r"no dataset\.json"):
        open_dataset(tmp_path)
    shutil.rmtree(folder_of(tmp_path / "D") / "imagesTr")
    with pytest.raises(UserError, match="folder with the training images is missing"):
        open_dataset(tmp_path / "D")
