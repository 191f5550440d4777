"""DICOM series folders: the real ones, and with slices missing, doubled or mixed."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import UserError
from autoseg.raw import list_prediction_cases, read_geometry, read_image, write_label


@pytest.fixture
def series(shared, tmp_path):
    return shutil.copytree(shared / "data" / "dicom" / "chaos_ct3", tmp_path / "ct", ignore=lambda *_: {"ground"})


def test_series_agrees_with_simpleitk(shared):
    for name, slices in (("hippocampus_study1", 32), ("hippocampus_study3", 40), ("chaos_ct3", 4)):
        folder = shared / "data" / "dicom" / name
        image = read_image([folder], channels=1)
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        reference = sitk.ReadImage(files)
        assert image.data.shape[1] == slices
        assert np.array_equal(image.data[0], sitk.GetArrayFromImage(reference).astype(np.float32))
        assert image.geometry.spacing[::-1] == pytest.approx(reference.GetSpacing())
        assert image.geometry.origin == pytest.approx(reference.GetOrigin())


def test_hounsfield_units_and_output_grid(series, tmp_path):
    image = read_image([series], channels=1)
    assert image.data.min() == -1000  # the rescale intercept was applied
    write_label(tmp_path / "out.nii.gz", np.zeros(image.geometry.size, np.uint8), image.geometry)
    assert read_geometry(tmp_path / "out.nii.gz").corners == pytest.approx(image.geometry.corners, abs=1e-3)


def test_missing_slice_is_named(series):
    (series / "i0029.dcm").unlink()
    with pytest.raises(UserError, match=r"4\.000 mm apart, where 2\.000|2\.000 mm apart, where 4\.000|missing"):
        read_geometry(series)


def test_missing_slice_of_a_long_series_is_named(shared, tmp_path):
    folder = shutil.copytree(shared / "data" / "dicom" / "hippocampus_study1", tmp_path / "mr")
    (folder / "10.dcm").unlink()
    with pytest.raises(UserError, match=r"mr: the slices 9\.dcm and 11\.dcm are 2\.000 mm apart, where 1\.000"):
        read_geometry(folder)


def test_doubled_slice_and_two_series(series, shared):
    shutil.copy(series / "i0029.dcm", series / "again.dcm")
    with pytest.raises(UserError, match="lie on one another"):
        read_geometry(series)
    (series / "again.dcm").unlink()
    shutil.copy(shared / "data/dicom/hippocampus_study1/1.dcm", series)
    with pytest.raises(UserError, match="2 DICOM image series"):
        read_geometry(series)


def test_series_folders_are_cases(shared):
    folder = shared / "data" / "dicom"
    cases = list_prediction_cases(folder, channels=1, file_ending=".nii.gz")
    assert [case.id for case in cases] == ["chaos_ct3", "hippocampus_study1", "hippocampus_study3"]
    (case,) = list_prediction_cases(folder / "chaos_ct3", channels=1, file_ending=".nii.gz")
    assert (case.id, case.images) == ("chaos_ct3", (folder / "chaos_ct3",))
