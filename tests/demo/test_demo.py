"""The bundled data set and the demo that runs on it."""

import json
import shutil

import numpy as np
import pytest

from autoseg import demo
from autoseg.demo import pipeline
from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.raw import open_dataset, read_image, read_label
from autoseg.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(tmp_path)


def test_bundled_data_are_real_complete_and_licensed():
    folder = demo.bundled_dataset()
    dataset = open_dataset(folder)
    assert (len(dataset.cases), len(dataset.test)) == (30, 6)
    assert dataset.labels.names == ("Anterior", "Posterior")
    assert {case.id for case in dataset.cases}.isdisjoint(case.id for case in dataset.test)
    for case in (*dataset.cases, *dataset.test):
        image, (label, _) = read_image(case.images, channels=1), read_label(case.label)
        assert image.data.shape[1:] == label.shape
        assert set(np.unique(label)) == {0, 1, 2}
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 2.5e6
    licence = (folder / "LICENSE.txt").read_text()
    for text in ("CC-BY-SA 4.0", "Medical Segmentation Decathlon", "unmodified", "Vanderbilt"):
        assert text in licence


def test_bundled_files_are_those_of_the_source(shared):
    source = shared / "data" / demo.bundled_dataset().name
    for file in demo.bundled_dataset().rglob("*.nii.gz"):
        part = file.parent.name.replace("Ts", "Tr")  # the unseen cases are training cases of the source
        assert file.read_bytes() == (source / part / file.name).read_bytes()


def test_data_are_copied_once(workspace):
    folder = demo.copy_dataset(workspace)
    assert folder == workspace.raw / "Dataset004_Hippocampus"
    marked = folder / "imagesTr" / "mine.txt"
    marked.write_text("kept")
    assert demo.copy_dataset(workspace) == folder
    assert marked.read_text() == "kept"
    assert [path.name for path in workspace.raw.iterdir()] == [folder.name]


def test_another_data_set_of_the_same_name_is_left_alone(workspace):
    folder = demo.copy_dataset(workspace)
    description = json.loads((folder / "dataset.json").read_text()) | {"numTraining": 260}
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="not that of the demo"):
        demo.copy_dataset(workspace)


def test_a_budget_that_is_used_up_before_training_is_told(workspace):
    with pytest.raises(UserError, match="used up before training could start"):
        pipeline._train(workspace, demo.bundled_dataset(), time_left=20.0, time_budget=300.0, device="cpu")


def test_plans_without_runs_are_made_anew(workspace):
    folder = demo.copy_dataset(workspace)
    pipeline._prepare(workspace, folder, 1.0, "cpu")
    file = workspace.plans_file(folder.name, pipeline.PLANS)
    short = Plans.read(file).configuration("3d_fullres").training.steps
    pipeline._prepare(workspace, folder, 300.0, "cpu")
    long = Plans.read(file).configuration("3d_fullres").training.steps
    assert long > 10 * short
    run = workspace.run_folder(folder.name, "supervised", pipeline.PLANS, "3d_fullres", 0)
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    pipeline._prepare(workspace, folder, 1.0, "cpu")  # what runs were planned by stays
    assert Plans.read(file).configuration("3d_fullres").training.steps == long


def test_damaged_data_are_told_before_training(workspace):
    folder = demo.copy_dataset(workspace)
    victim = next((folder / "labelsTr").iterdir())
    shutil.copy(next((folder / "imagesTr").iterdir()), victim)
    with pytest.raises(UserError, match=f"damaged(.|\n)*{victim.name.split('.')[0]}"):
        demo.run(workspace.root, time_budget=100)
