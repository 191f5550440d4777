"""Spacings of another unit are told, and those that no plan can hold are refused, in every format that has them."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from pydantic import TypeAdapter, ValidationError

from autoseg.cli.running import run
from autoseg.errors import CasesFailed, UserError
from autoseg.fingerprinting import fingerprint
from autoseg.plan_bounds import Spacing
from autoseg.raw import check, read_geometry, read_image
from autoseg.raw.geometry import COARSEST, FINEST

BEYOND = (1e-7, 2e4, 1e12)


def save(path, spacing, seed=0, size=(20, 21, 22)):
    """Write a volume of noise with a block of another brightness, in whatever format the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    array[5:12, 5:12] += 5
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*np.broadcast_to(spacing, 3), 1.0])), path)
        return path
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(np.broadcast_to(spacing, 3).astype(float).tolist())
    sitk.WriteImage(image, str(path))
    return path


def folder_of(root, spacings):
    """Write a data set with one case per spacing (mm)."""
    for number, spacing in enumerate(spacings):
        save(root / "imagesTr" / f"c{number}_0000.nii.gz", spacing, number)
        label = np.zeros((20, 21, 22), np.uint8)
        label[5:12, 5:12] = 1
        (root / "labelsTr").mkdir(exist_ok=True)
        affine = np.diag([*np.broadcast_to(spacing, 3), 1.0])
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labelsTr" / f"c{number}.nii.gz")
    content = {"channel_names": {"0": "A"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": len(spacings)}))
    return root


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("spacing", BEYOND)
def test_what_no_plan_can_hold_is_refused(tmp_path, ending, spacing):
    path = save(tmp_path / f"a{ending}", (1, spacing, 1))
    for read in (read_geometry, lambda path: read_image([path], channels=1)):
        with pytest.raises(UserError, match=rf"a\{ending}: field spacing is 1 x .* x 1 mm, beyond 1e-06 to 10000"):
            read(path)


@pytest.mark.parametrize("spacing", [1e-6 * (1 + 1e-6), 1e-4, 1.0, 1e4])
def test_what_a_plan_can_hold_is_read(tmp_path, spacing):
    assert read_geometry(save(tmp_path / "a.nii.gz", spacing)).spacing == pytest.approx([spacing] * 3)


def test_the_bounds_lie_within_those_of_plans():
    spacing = TypeAdapter(Spacing)
    for inside in (FINEST, COARSEST, 10 * COARSEST):  # a low-resolution stage is coarser than the data
        assert spacing.validate_python(inside) == inside
    for outside in (FINEST / 1.01, 10.1 * COARSEST):
        with pytest.raises(ValidationError):
            spacing.validate_python(outside)


@pytest.mark.parametrize("spacing", ["[1, 1, 1e-9]", "[1e9, 1, 1]", "[1, Infinity, 1]", "[NaN, 1, 1]", "[1, 1, NaN]"])
def test_the_spacing_beside_a_tiff_stack_is_bounded_too(tmp_path, spacing):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(tmp_path / "a_0000.tif"))
    (tmp_path / "a.json").write_text(f'{{"spacing": {spacing}}}')
    with pytest.raises(UserError, match=r"a\.json: .*spacing"):
        read_geometry(tmp_path / "a_0000.tif")


@pytest.mark.parametrize(
    "content",
    [
        '{"spacing": "123"}', '{"spacing": {"1": 1, "2": 2, "3": 3}}', '{"spacing": [true, true, true]}',
        '{"spacing": [1, 1]}', '{"spacing": [1, 1, "1"]}', "[1, 1, 1]", '{"spacing": [1, 1, 1], "spacing": [2, 2, 2]}',
        '{"spacing": [1' + 400 * "0" + ", 1, 1]}", 50_000 * "[", "",
    ],
    ids=["text", "object", "true", "two", "a text", "no object", "twice", "huge", "deep", "empty"],
)  # fmt: skip
def test_whatever_else_stands_beside_a_tiff_stack_is_told_with_its_file(tmp_path, content):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(tmp_path / "a_0000.tif"))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json: ") as caught:
        read_geometry(tmp_path / "a_0000.tif")
    assert caught.value.mend


@pytest.mark.parametrize(("spacing", "said"), [("0", "which is no grid"), ("1e-9", "1e-09 x 1e-09 x 2 mm, beyond")])
def test_the_spacing_of_a_dicom_series_is_bounded_too(shared, tmp_path, spacing, said):
    source = shared / "data" / "dicom" / "chaos_ct3"
    series = shutil.copytree(source, tmp_path / "ct", ignore=lambda *_: {"ground"})
    for file in series.iterdir():
        content = file.read_bytes()
        place = content.index(b"\x28\x00\x30\x00\x14\x00\x00\x00") + 8  # pixel spacing, 20 letters
        text = f"{spacing}\\{spacing}".encode().ljust(20)
        file.write_bytes(content[:place] + text + content[place + 20 :])
    with pytest.raises(UserError, match=said):
        read_geometry(series)


@pytest.mark.parametrize("spacing", [BEYOND[0], BEYOND[2]])
def test_a_data_set_of_nothing_else_is_told_case_by_case(tmp_path, monkeypatch, capfd, spacing):
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    data = folder_of(tmp_path / "d", [spacing] * 2)
    assert {problem.file.rpartition("/")[2] for problem in check(data, workers=1).errors} == {
        "c0_0000.nii.gz",
        "c1_0000.nii.gz",
        "c0.nii.gz",
        "c1.nii.gz",
    }
    with pytest.raises(CasesFailed, match="field spacing is"):
        fingerprint(data, tmp_path / "w", workers=1)
    capfd.readouterr()
    assert run(["plan-and-preprocess", str(data), "--workers", "1"]) == 2
    told = capfd.readouterr().err
    assert "2 case(s) failed; there is no other case" in told
    assert f"imagesTr/c0_0000.nii.gz: field spacing is {spacing:g} x {spacing:g} x {spacing:g} mm, beyond" in told
    assert "To mend it: write the file again with its spacing in mm" in told
    assert "ValidationError" not in told
    assert "defect of autoseg" not in told


def test_one_such_case_is_left_out_and_the_others_are_complete(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    data = folder_of(tmp_path / "d", [1.0, 1e-7, 1.2])
    plan = ["plan-and-preprocess", str(data), "--planner", "nnunet", "-c", "2d", "--workers", "1"]
    assert run(plan) == 1
    assert "imagesTr/c1_0000.nii.gz: field spacing is 1e-07" in capfd.readouterr().err
    assert {path.name for path in (tmp_path / "w").rglob("cases/*.image.b2nd")} == {"c0.image.b2nd", "c2.image.b2nd"}


@pytest.mark.parametrize(("spacing", "told"), [(5e-4, True), (2e-3, False), (90.0, False), (700.0, True)])
def test_the_check_asks_after_the_unit_once_per_case(tmp_path, spacing, told):
    report = check(folder_of(tmp_path, [spacing, 1.0]), workers=1)
    assert report.ok
    assert [(problem.case, problem.field) for problem in report.problems] == [("c0", "spacing")] * told
    if told:
        (problem,) = report.problems
        assert problem.value == f"{spacing:g} x {spacing:g} x {spacing:g}"
        assert f"the spacing is {spacing:g} x" in problem.message
        assert "metres, micrometres" in problem.message
        assert "keep it if it is right, as in microscopy" in problem.mend


def test_an_image_in_millimetres_that_is_said_to_be_in_metres_is_told(tmp_path):
    data = folder_of(tmp_path, [0.8])
    for path in data.glob("*/*.nii.gz"):
        image = nibabel.load(path)
        image.header.set_xyzt_units("meter")
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    (problem,) = check(data, workers=1).problems
    assert problem.value == "800 x 800 x 800"


def test_the_thickness_of_a_single_slice_is_not_doubted(tmp_path):
    folder_of(tmp_path, [1.0])
    affine = np.diag([1.0, 1.0, 999.0, 1.0])  # as many programs write pictures
    array = np.random.default_rng(0).normal(size=(20, 21, 1)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "imagesTr" / "c0_0000.nii.gz")
    label = (array > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / "labelsTr" / "c0.nii.gz")
    assert check(tmp_path, workers=1).problems == ()


def stacks(root):
    for case in "ab":
        values = np.random.default_rng(ord(case)).integers(0, 200, (3, 8, 9)).astype(np.uint8)
        for name, array in ((f"imagesTr/{case}_0000.tif", values), (f"labelsTr/{case}.tif", values // 100)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(root / name))
    content = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "x": 1}, "file_ending": ".tif"}
    (root / "dataset.json").write_text(json.dumps(content))


def test_a_stack_without_spacing_is_told_until_it_has_one(tmp_path):
    stacks(tmp_path)
    (tmp_path / "imagesTr" / "b.json").write_text('{"spacing": [1, 1, 1]}')
    (problem,) = check(tmp_path, workers=1).problems
    assert (problem.case, problem.field, problem.severity) == ("a", "spacing", "warning")
    assert "1 x 1 x 1 mm are taken" in problem.message
    assert "write a.json beside it" in problem.mend
    (tmp_path / "imagesTr" / "a.json").write_text('{"spacing": [5e-5, 4e-6, 4e-6]}')  # 50 x 4 x 4 nm
    assert check(tmp_path, workers=1).problems == ()
