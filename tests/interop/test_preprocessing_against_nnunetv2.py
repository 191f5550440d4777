"""Fingerprint and preprocessed arrays of nnunetv2 2.8.1 on real data; needs AUTOSEG_TEST_NNUNET_PYTHON.

Tolerances: images differ by less than 2e-3 of a standard deviation anywhere (splines are evaluated in float32 here).
Label maps are equal in all but 1e-4 of the voxels, apart from those where a label's weight is exactly one half: there
nnU-Net's answer depends on the rounding of its interpolation, and autoseg's does not.
"""

import json
import shutil

import blosc2
import nibabel as nib
import numpy as np
import pytest

from autoseg.fingerprinting import fingerprint
from autoseg.interop.nnunet_plans import read_plans
from autoseg.preprocessing import preprocess_case
from autoseg.preprocessing.crop import crop
from autoseg.preprocessing.resample import resample_image
from autoseg.raw import open_dataset, read_image, read_label
from autoseg.workspace import Workspace

SETS = {
    "Dataset004_Hippocampus": {"3d_fullres": {"spacing": [1.0, 0.8, 1.3]}, "2d": {"spacing": [0.9, 1.2]}},
    "Dataset112_CardiacACDC": {"3d_fullres": {"spacing": [6.0, 2.0, 2.0]}, "2d": {"spacing": [1.2, 1.2]}},
    "Dataset109_LiverCT": {"3d_fullres": {"spacing": [3.0, 1.8, 1.8]}},
}
CASES = 3


@pytest.fixture(scope="module", params=SETS)
def theirs(request, nnunetv2, shared, tmp_path_factory):
    """Let nnunetv2 take the fingerprint of a few cases and preprocess them; returns raw folder and its results."""
    name, work = request.param, tmp_path_factory.mktemp("parity")
    source, raw = shared / "data" / name, work / "raw" / name
    if not source.is_dir():
        pytest.skip(f"{name} is not among the shared data")
    labels = sorted((source / "labelsTr").iterdir())[:CASES]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for label in labels:
        shutil.copy(label, raw / "labelsTr")
        for image in (source / "imagesTr").glob(label.name.replace(".nii.gz", "_0*")):
            shutil.copy(image, raw / "imagesTr")
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(labels)}
    (raw / "dataset.json").write_text(json.dumps(description))
    nnunetv2(
        {
            "work": work, "dataset": name, "residual": False, "plans": {}, "configurations": SETS[name], "steps": 0,
            "train": [], "folds": [], "predict": [],
        }
    )  # fmt: skip
    return raw, work / "preprocessed" / name


def test_fingerprint(theirs, tmp_path):
    raw, results = theirs
    workspace = Workspace.open(tmp_path)
    ours = fingerprint(open_dataset(raw, workspace), workspace, workers=1)
    wanted = json.loads((results / "dataset_fingerprint.json").read_text())
    np.testing.assert_allclose(sorted(ours.spacings), sorted(map(tuple, wanted["spacings"])), rtol=1e-6)
    assert sorted(map(tuple, ours.shapes_after_crop)) == sorted(map(tuple, wanted["shapes_after_crop"]))
    assert ours.median_relative_size == pytest.approx(wanted["median_relative_size_after_cropping"])
    for channel, values in wanted["foreground_intensity_properties_per_channel"].items():
        found = ours.intensities[int(channel)].model_dump()
        spread = values["percentile_99_5"] - values["percentile_00_5"]
        # nnU-Net draws voxels with replacement, autoseg takes all of them
        for key in ("mean", "median", "std", "percentile_00_5", "percentile_99_5"):
            assert found[key] == pytest.approx(values[key], abs=0.005 * spread), key


def test_arrays(theirs, tmp_path):
    raw, results = theirs
    dataset = open_dataset(raw, Workspace.open(tmp_path))
    plans_file = results / "nnUNetPlans.json"
    their_plans = json.loads(plans_file.read_text())
    for name in SETS[raw.name]:
        plans = read_plans(their_plans, dataset.description, dataset.labels, name, plans_file)
        configuration = plans.configuration(name)
        folder = results / configuration.data_identifier
        for case in dataset.cases:
            image = read_image(case.images, channels=len(dataset.channel_names))
            label = dataset.labels.to_internal(read_label(case.label)[0])
            ours = preprocess_case(image.data, label, image.geometry.spacing, plans=plans, configuration=configuration)
            data = blosc2.open(urlpath=str(folder / f"{case.id}.b2nd"), mode="r")[:]
            seg = blosc2.open(urlpath=str(folder / f"{case.id}_seg.b2nd"), mode="r")[0]
            assert ours.data.shape == data.shape
            assert ours.data.shape[1:] != nib.load(case.label).shape[::-1]  # it was resampled
            difference = np.abs(ours.data - data)
            assert difference.max() < 2e-3 * data.std(), (name, case.id)
            clear = ~has_tie(image, label, ours, configuration)
            assert clear.mean() > 0.99
            assert (ours.label == seg)[clear].mean() > 0.9999, (name, case.id)
            foreground = clear & ((ours.label > 0) | (seg > 0))
            assert (ours.label == seg)[foreground].mean() > 0.998, (name, case.id)


def has_tie(image, label, ours, configuration):
    """Tell for every resampled voxel whether the linear weight of some label is one half."""
    cropped = crop(image.data, label, image.geometry.spacing).label
    spacing = (*image.geometry.spacing[: 3 - configuration.dims], *configuration.spacing)
    masks = np.stack([(cropped == value) for value in np.unique(cropped)]).astype(np.float32)
    weights = resample_image(
        masks, ours.label.shape, current_spacing=image.geometry.spacing, new_spacing=spacing, order=1
    )
    return (np.abs(weights - 0.5) < 1e-5).any(0)
