"""A NIfTI header may give two places; the check tells where they differ, and only where they do."""

import json

import nibabel
import numpy as np
import pytest

from autoseg.raw import check, forms, read_geometry
from autoseg.raw.images import read_header

SIZE = (512, 512, 600)  # the larger an image, the farther rounding moves its corners


def save(path, *, sform, qform, codes=(1, 1), size=(8, 9, 10)):
    """Write a NIfTI file of noise with both forms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.random.default_rng(len(path.name)).normal(size=size).astype(np.float32), None)
    image.set_qform(qform, code=codes[1])
    image.set_sform(sform, code=codes[0])
    nibabel.save(image, path)
    return path


def moved(x):
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    affine[0, 3] = x
    return affine


@pytest.mark.parametrize(
    ("codes", "used", "other"),
    [
        ((1, 1), "sform (code 1)", "qform (code 1)"),
        ((2, 1), "qform (code 1)", "sform (code 2)"),  # as ITK: only the qform speaks of the scanner
        ((2, 2), "sform (code 2)", "qform (code 2)"),
    ],
)
def test_two_places_are_told_with_the_one_that_is_used(tmp_path, codes, used, other):
    path = save(tmp_path / "a.nii.gz", sform=moved(3.0), qform=moved(-4.0), codes=codes)
    second = read_header(path).second_place
    assert (second.used, second.other) == (used, other)
    assert second.distance == pytest.approx(7)
    assert read_geometry(path).origin[0] == (-3 if used.startswith("sform") else 4)  # ITK's x points the other way


@pytest.mark.parametrize(("shift", "told"), [(0.0, False), (0.024, False), (0.027, True)])  # 5 % of 0.5 mm
def test_the_tolerance_is_that_of_two_grids(tmp_path, shift, told):
    path = save(tmp_path / "a.nii.gz", sform=moved(0), qform=moved(shift))
    assert (read_header(path).second_place is not None) == told


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (0, 0)])
def test_a_form_without_a_code_is_no_place(tmp_path, codes):
    path = save(tmp_path / "a.nii.gz", sform=moved(0), qform=moved(50), codes=codes)
    assert read_header(path).second_place is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_second_form_that_is_no_place_is_told(tmp_path, value):
    path = save(tmp_path / "a.nii", sform=moved(0), qform=moved(0))
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]))
    header["quatern_b"] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    assert read_header(path).second_place.distance == np.inf


def directions(number):
    """Turns by any angle, and by all but half a turn, where a quaternion in single precision says least."""
    random = np.random.default_rng(0)
    for index in range(number):
        axis = random.normal(size=3) if index % 3 else np.eye(3)[random.integers(3)]
        axis /= np.linalg.norm(axis)
        angle = random.uniform(0, np.pi) if index % 2 else np.pi - 10 ** random.uniform(-7, -1)
        cross = np.cross(np.eye(3), axis)
        yield np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def doubted(path, number):
    """Return how many images are said to have two places whose forms were written from one affine."""
    told = 0
    for turn in directions(number):
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn * (0.3, 0.7, 1.1), (-211.3, 97.7, 1013.1)
        header = nibabel.Nifti1Header()
        header.set_data_shape(SIZE)
        header.set_qform(affine, code=1)
        header.set_sform(affine, code=1)
        path.write_bytes(header.binaryblock + bytes(4))
        told += read_header(path).second_place is not None
    return told


def test_the_rounding_of_quaternions_is_not_told(tmp_path, monkeypatch):
    assert doubted(tmp_path / "a.nii", 300) == 0
    monkeypatch.setattr(forms, "LOST", 0.0)
    assert doubted(tmp_path / "a.nii", 300) > 10  # so there is something to tolerate


def test_the_check_names_both_and_the_mend(tmp_path):
    for case, x in (("a", 0), ("bc", 7)):
        save(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", sform=moved(0), qform=moved(x))
        label = np.zeros((8, 9, 10), np.uint8)
        label[2:5] = 1
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(label, moved(0)), tmp_path / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "A"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    report = check(tmp_path, workers=1)
    assert report.ok
    (problem,) = report.problems
    assert (problem.case, problem.field, problem.severity) == ("bc", "qform and sform", "warning")
    assert problem.file.endswith("imagesTr/bc_0000.nii.gz")
    assert "the sform (code 1), which is used" in problem.message
    assert "the qform (code 1), by which corners are up to 7.00 mm away" in problem.message
    assert "with that one in both" in problem.mend
