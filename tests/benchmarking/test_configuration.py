"""The configuration that is compared and what a dry run knows of the images before there is a fingerprint."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from benchmarking_players import DATASET

from autoseg.benchmarking import Budget, Question, dry_run
from autoseg.benchmarking.configuration import configuration_of, is_flat
from autoseg.errors import UserError
from autoseg.raw import open_dataset
from autoseg.workspace import Workspace

NETWORKS = ("plain_unet", "meddinov3", "swin_bob")  # 2D and 3D, 2D only, 3D only


@pytest.fixture
def workspace(tmp_path):
    """A workspace in which nothing was measured."""
    return Workspace.open(tmp_path / "place")


def make_dataset(workspace, shape, ending, cases=4):
    """Write images of noise, numbered, and empty label maps; returns the folder."""
    folder = workspace.raw / "Dataset900_Noise"
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        noise = rng.integers(0, 255, shape, dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / "imagesTr" / f"c{number}_0000{ending}"))
        sitk.WriteImage(sitk.GetImageFromArray(noise // 255), str(folder / "labelsTr" / f"c{number}{ending}"))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "spot": 1}, "numTraining": cases,
                   "file_ending": ending}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def question(folder, **asked):
    return Question(
        datasets=(str(folder),), budget=Budget.parse("steps", "10"),
        **{"architectures": NETWORKS, "recipes": "common", "seeds": 1, **asked},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "ending", "flat"),
    [
        ((20, 24), ".png", True),
        ((20, 24), ".bmp", True),
        ((20, 24), ".tif", True),
        ((20, 24), ".nii.gz", True),
        ((1, 20, 24), ".nii.gz", True),  # a volume of one slice
        ((6, 20, 24), ".nii.gz", False),
        ((6, 20, 24), ".tif", False),
    ],
)
def test_a_dry_run_knows_the_dimensions_before_there_is_a_fingerprint(workspace, shape, ending, flat):
    folder = make_dataset(workspace, shape, ending)
    assert is_flat(open_dataset(folder, workspace), workspace) == flat
    (one,) = dry_run(question(folder), workspace=workspace)
    assert one.entries == 2
    served, other = ("meddinov3", "swin_bob") if flat else ("swin_bob", "meddinov3")
    (alone,) = dry_run(question(folder, architectures=(served,)), workspace=workspace)
    assert alone.entries == 1
    with pytest.raises(UserError, match=f"{other} has no {2 if flat else 3}D form"):
        dry_run(question(folder, architectures=(other,)), workspace=workspace)
    assert not (workspace.preprocessed_folder("Dataset900_Noise")).exists()  # nothing was measured


def test_a_configuration_asked_for_wins_over_the_images(workspace):
    folder = make_dataset(workspace, (6, 20, 24), ".nii.gz")
    (one,) = dry_run(question(folder, architectures=("meddinov3",), configuration="2d"), workspace=workspace)
    assert one.entries == 1


def test_the_fingerprint_is_believed_where_there_is_one(workspace):
    folder = make_dataset(workspace, (20, 24), ".png")
    preprocessed = workspace.preprocessed_folder("Dataset900_Noise")
    preprocessed.mkdir(parents=True)
    (preprocessed / "fingerprint.json").write_text(json.dumps({"shapes_after_crop": [[1, 9, 9], [6, 9, 9], [7, 9, 9]]}))
    assert not is_flat(open_dataset(folder, workspace), workspace)


@pytest.mark.parametrize("name", ["nonsense", "3d_cascade_fullres"])
def test_a_configuration_that_no_plan_has_is_refused_before_anything_is_estimated(workspace, name):
    folder = make_dataset(workspace, (6, 20, 24), ".nii.gz")
    with pytest.raises(UserError, match=f"plans have no configuration '{name}'") as error:
        dry_run(question(folder, configuration=name), workspace=workspace)
    assert "2d or 3d_fullres or 3d_lowres" in error.value.mend


def test_flat_images_are_not_compared_in_3d(workspace):
    folder = make_dataset(workspace, (20, 24), ".png")
    with pytest.raises(UserError, match="2D images have no configuration '3d_fullres'"):
        dry_run(question(folder, configuration="3d_fullres"), workspace=workspace)


def test_plans_for_all_say_which_configuration(place):
    folder = place.raw / DATASET
    dataset = open_dataset(folder, place)
    assert configuration_of(question(folder, plans="tiny"), dataset, place) == "3d_fullres"
    assert configuration_of(question(folder, plans="tiny", configuration="2d"), dataset, place) == "2d"
    with pytest.raises(UserError, match="no configuration '4d'"):
        configuration_of(question(folder, plans="tiny", configuration="4d"), dataset, place)
    with pytest.raises(UserError, match="there are no plans 'none'"):
        dry_run(question(folder, plans="none"), workspace=place)


def test_the_real_images_are_3d_without_their_fingerprint(place):
    shutil.rmtree(place.preprocessed)
    (one,) = dry_run(question(place.raw / DATASET), workspace=place)
    assert one.entries == 2
