"""A real image in all 48 orders and directions of its axes: outputs lie on its grid, and mean the same voxels."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bad_data import GOOD, SOURCE
from model_factory import write_model
from torch import nn

from autoseg.inference import Predictor
from autoseg.model_folder import MODEL_FILE
from autoseg.storage import read_json, write_json

SPACING = (0.8, 1.0, 1.3)  # of the real voxels, so that no axis can pass for another
PART = (slice(2, 25), slice(4, 31), slice(3, 22))
WAYS = [
    np.column_stack([order, directions])
    for order in itertools.permutations(range(3))
    for directions in itertools.product((1, -1), repeat=3)
]


def rotation(degrees, axis):
    """Return the matrix that turns by an angle about an axis (Rodrigues)."""
    x, y, z = np.divide(axis, np.linalg.norm(axis))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(np.radians(degrees)) * cross + (1 - np.cos(np.radians(degrees))) * cross @ cross


@pytest.fixture(scope="module", params=[0, 23], ids=["straight", "oblique"])
def images(request, tmp_path_factory):
    """The folder of the images of one body, and the image of which all are views; its axes are turned by degrees."""
    voxels = np.asarray(nib.load(SOURCE / "imagesTr" / f"{GOOD}_0000.nii.gz").dataobj)[PART].astype(np.float32)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, :3] = rotation(request.param, (1, 2, 3)) @ affine[:3, :3]
    affine[:3, 3] = (-30.5, 12.25, 7.0)
    base = nib.Nifti1Image(voxels, affine)
    folder = tmp_path_factory.mktemp("orientations")
    for number, way in enumerate(WAYS):
        nib.save(base.as_reoriented(way), folder / f"way{number:02}_0000.nii.gz")
    return folder, base


@pytest.fixture(scope="module", params=["as_stored", "ras"])
def predicted(request, images, tmp_path_factory):
    """Orientation of the model, images, outputs."""
    place = tmp_path_factory.mktemp(request.param)
    model = write_model(place / "model", {"mirror_axes": ()})
    write_json(model / MODEL_FILE, read_json(model / MODEL_FILE) | {"orientation": request.param})
    results = Predictor.load(model, device="cpu", precision="fp32").predict_folder(images[0], place / "out", workers=2)
    assert [result.error for result in results] == [None] * 48
    return request.param, images[0], place / "out"


def test_there_are_48_ways(images):
    codes = {nib.aff2axcodes(nib.load(file).affine) for file in images[0].iterdir()}
    assert len(WAYS) == len(codes) == 48


def test_every_output_lies_on_the_grid_of_its_image(predicted):
    _, images, outputs = predicted
    for file in sorted(images.iterdir()):
        output = outputs / file.name.replace("_0000", "")
        image, label = nib.load(file), nib.load(output)
        assert label.shape == image.shape
        assert np.array_equal(label.affine, image.affine)
        ours, theirs = sitk.ReadImage(str(output)), sitk.ReadImage(str(file))
        assert ours.GetSize() == theirs.GetSize()
        assert ours.GetSpacing() == theirs.GetSpacing()
        assert ours.GetOrigin() == theirs.GetOrigin()
        assert ours.GetDirection() == theirs.GetDirection()


def test_a_model_of_fixed_axes_gives_the_same_label_map_in_every_way(predicted, images):
    """Models in RAS axes promise it. Others see arrays as they are stored, so their label maps may well differ."""
    orientation, _, outputs = predicted
    maps = [nib.as_closest_canonical(nib.load(file)) for file in sorted(outputs.glob("*.nii.gz"))]
    assert len(maps) == 48
    assert all(np.allclose(label.affine, images[1].affine, atol=1e-6) for label in maps)
    assert len(np.unique(maps[0].dataobj)) > 1
    same = [np.array_equal(maps[0].dataobj, label.dataobj) for label in maps]
    assert all(same) if orientation == "ras" else not all(same)


class Bright(nn.Module):
    """Calls what is brighter than the mean the first class."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x, torch.full_like(x, -9)], dim=1)


def test_what_is_segmented_moves_with_the_body(tmp_path, images):
    """A network that sees single voxels finds the same body, however the axes are stored; sums may differ in a bit."""
    predictor = Predictor.load(write_model(tmp_path / "model"), device="cpu", precision="fp32")
    predictor.members = (replace(predictor.members[0], networks=(Bright(),)),)
    results = predictor.predict_folder(images[0], tmp_path / "out", workers=2)
    maps = [np.asarray(nib.as_closest_canonical(nib.load(result.output)).dataobj) for result in results]
    voxels = np.asarray(images[1].dataobj)
    assert 0.2 < (maps[0] > 0).mean() < 0.8
    assert ((voxels > voxels.mean()) == (maps[0] > 0)).mean() > 0.95  # resampled to the spacing of the plan and back
    assert all((maps[0] == label).mean() > 0.999 for label in maps)
