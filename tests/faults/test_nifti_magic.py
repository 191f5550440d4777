"""A file of one format that other readers take for another is refused where they would see another place."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import UserError
from autoseg.raw import read_image, read_label

AFFINE = np.array([[1.5, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
ORIGIN = (-5.0, -6.0, 7.0)


def written(path, magic, second=False):
    """Write a small volume with a magic of any bytes, at its place in the header."""
    voxels = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(voxels, AFFINE)
    content, place = bytearray(image.to_bytes()), 4 if second else 344
    content[place : place + len(magic)] = magic
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("magic", [b"n+1\0", b"ni1\0", b"n+2\0", b"n+9\0"])
def test_what_itk_takes_for_nifti_is_read_at_the_same_place(magic, tmp_path):
    path = written(tmp_path / "a.nii", magic)
    theirs, ours = sitk.ReadImage(str(path)), read_image([path], channels=1)
    assert theirs.GetOrigin() == ours.geometry.origin == ORIGIN
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), ours.data[0])


@pytest.mark.parametrize("magic", [bytes(4), b"n+0\0", b"N+1\0", b"n+1x", b"text"])
def test_what_itk_takes_for_analyze_is_refused(magic, tmp_path):
    path = written(tmp_path / "a.nii", magic)
    assert sitk.ReadImage(str(path)).GetOrigin() == (0, 0, 0)  # not where the header says
    for read in (lambda: read_image([path], channels=1), lambda: read_label(path)):
        with pytest.raises(UserError, match=r"a\.nii: the header has the magic b'") as told:
            read()
        assert repr(magic) in str(told.value)
        assert "write the file again as NIfTI" in told.value.mend


def test_the_second_version_needs_its_magic_too(tmp_path):
    assert read_image([written(tmp_path / "a.nii", b"n+2\0", second=True)], channels=1).geometry.origin == ORIGIN
    with pytest.raises(UserError, match="the header has the magic"):
        read_image([written(tmp_path / "b.nii", bytes(8), second=True)], channels=1)
