"""Preprocessing of data sets: real hippocampi, faults injected."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import autoseg
from autoseg.errors import CasesFailed, UserError
from autoseg.fingerprinting import fingerprint
from autoseg.preprocessing import dataset as pipeline
from autoseg.preprocessing import preprocess, preprocess_case
from autoseg.preprocessing.dataset import annotated_values
from autoseg.preprocessing.decoded import DecodedCache
from autoseg.raw import open_dataset, read_image, read_label
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"


@pytest.fixture
def raw(few_cases) -> Path:
    """Three labelled cases and one without a label map."""
    return few_cases(3)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def plans(make_plans):
    first, second = make_plans((1.0, 1.0, 1.0), name="full"), make_plans((2.0, 1.5), name="flat")
    return first.model_copy(update={"configurations": first.configurations | second.configurations})


def states(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def count_reads(monkeypatch) -> list:
    reads = []
    monkeypatch.setattr(
        "autoseg.preprocessing.decoded.read_image",
        lambda paths, channels: reads.append(paths[0].name) or read_image(paths, channels=channels),
    )
    return reads


def test_every_stage_takes_paths_names_and_open_data_sets(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Workspace.open()
    (tmp_path / place.raw).mkdir(parents=True)
    raw.rename(place.raw / NAME)
    dataset = open_dataset("4")
    assert open_dataset(dataset) is dataset
    measured = autoseg.fingerprint("4")
    assert autoseg.fingerprint(place.raw / NAME, str(place.root)) == autoseg.fingerprint(dataset, place) == measured
    options = {"planner": "nnunet", "gpu_memory": 4.0, "configurations": ["3d_fullres"]}
    plans = autoseg.plan("Hippocampus", **options)
    assert autoseg.plan(dataset, measured, place, **options) == plans
    folder = place.store_folder(NAME, plans.configuration("3d_fullres").data_identifier)
    for given in ("4", place.raw / NAME):
        assert autoseg.preprocess(given, plans, workers=1) == (folder,)
    assert autoseg.preprocess(dataset, plans, place.root, ["3d_fullres"], workers=1) == (folder,)
    assert len(CaseStore(folder).cases) == 4


def test_plan_measures_what_was_not_measured(raw, workspace):
    plans = autoseg.plan(raw, workspace=workspace.root, planner="nnunet", gpu_memory=4.0)
    assert (workspace.preprocessed_folder(NAME) / "fingerprint.json").is_file()
    assert plans.dataset_name == NAME


def test_stores_hold_what_single_cases_give_and_every_file_is_read_once(raw, workspace, plans, monkeypatch):
    reads = count_reads(monkeypatch)
    dataset = open_dataset(raw)
    fingerprint(dataset, workspace, workers=1)
    preprocess(dataset, plans, workspace, workers=1)
    assert len(reads) == len(set(reads)) == 4
    assert not DecodedCache.of(workspace, dataset.name).folder.exists()
    for configuration in plans.configurations.values():
        store = CaseStore(workspace.store_folder(dataset.name, configuration.data_identifier))
        assert store.sealed
        assert store.verify() == ()
        assert store.cases == tuple(sorted(case.id for case in (*dataset.cases, *dataset.unlabelled)))
        case = dataset.cases[1]
        label = dataset.labels.to_internal(read_label(case.label)[0])
        image = read_image(case.images, channels=1)
        expected = preprocess_case(image.data, label, image.geometry.spacing, plans=plans, configuration=configuration)
        stored = store.read(case.id)
        assert np.array_equal(stored.image(), expected.data.astype(np.float16).astype(np.float32))
        assert np.array_equal(stored.label(), expected.label)
        assert stored.properties == expected.properties
        assert stored.annotated is None
        assert set(stored.locations) == {1, 2}
        z, y, x = stored.locations[2].T
        assert (stored.label()[z, y, x] == 2).all()
        unlabelled = store.read(dataset.unlabelled[0].id)
        assert (unlabelled.labelled, unlabelled.annotated, unlabelled.locations) == (False, (), {})
        assert set(np.unique(unlabelled.label())) <= {-1, 0}


def test_a_second_run_does_nothing_and_restart_does_all(raw, workspace, plans, monkeypatch):
    dataset = open_dataset(raw)
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    folder = workspace.store_folder(dataset.name, "plans_full")
    before = states(folder)
    reads = count_reads(monkeypatch)
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    assert states(folder) == before
    assert reads == []
    preprocess(dataset, plans, workspace, ["full"], workers=1, restart=True)
    assert len(reads) == 4
    assert states(folder)["index.json"] != before["index.json"]


def spoil_first_voxel(path: Path) -> None:
    image = nibabel.load(path)
    data = np.asarray(image.dataobj).copy()
    data.flat[0] += 1
    nibabel.save(nibabel.Nifti1Image(data, image.affine, image.header), path)


def test_only_changed_cases_are_made_anew_and_old_ones_leave(raw, workspace, plans, monkeypatch):
    preprocess(open_dataset(raw), plans, workspace, ["full"], workers=1)
    first, second, third = sorted((raw / "imagesTr").iterdir())
    spoil_first_voxel(second)
    third.unlink()
    (raw / "labelsTr" / third.name.replace("_0000", "")).unlink()
    reads = count_reads(monkeypatch)
    description = json.loads((raw / "dataset.json").read_text()) | {"numTraining": 2}
    (raw / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(raw)
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    assert reads == [second.name]
    store = CaseStore(workspace.store_folder(dataset.name, "plans_full"))
    assert len(store.cases) == 3
    assert not list(store.folder.rglob(third.name.removesuffix("_0000.nii.gz") + "*"))
    assert first.name.removesuffix("_0000.nii.gz") in store.cases


def test_changed_settings_make_cases_anew(raw, workspace, plans, make_plans, monkeypatch):
    dataset = open_dataset(raw)
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    reads = count_reads(monkeypatch)
    other = make_plans((2.0, 1.0, 1.0), name="full")
    preprocess(dataset, other, workspace, workers=1)
    assert len(reads) == 4
    store = CaseStore(workspace.store_folder(dataset.name, "plans_full"))
    case = store.read(dataset.cases[0].id)
    assert case.shape[0] == round(case.properties.shape_after_crop[0] / 2)


def test_processes_give_the_same(raw, workspace, plans, tmp_path):
    dataset, other = open_dataset(raw), Workspace.open(tmp_path / "other")
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    fingerprint(dataset, other, workers=2)
    preprocess(dataset, plans, other, ["full"], workers=2)
    one, two = (CaseStore(place.store_folder(dataset.name, "plans_full")) for place in (workspace, other))
    assert one.cases == two.cases
    for case in one.cases:
        assert np.allclose(one.read(case).image(), two.read(case).image(), atol=2e-3)
        assert np.array_equal(one.read(case).label(), two.read(case).label())


def test_a_failing_case_takes_no_other_with_it(raw, workspace, plans):
    broken = sorted((raw / "imagesTr").iterdir())[1]
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    dataset = open_dataset(raw)
    case = broken.name.removesuffix("_0000.nii.gz")
    with pytest.raises(CasesFailed) as failure:
        fingerprint(dataset, workspace, workers=1)
    assert [one.case for one in failure.value.failures] == [case]
    with pytest.raises(CasesFailed, match=f"case {case}, preprocessing") as failure:
        preprocess(dataset, plans, workspace, ["full"], workers=1)
    assert len(failure.value.failures) == 1
    store = CaseStore(workspace.store_folder(dataset.name, "plans_full"))
    assert len(store.cases) == 3
    assert case not in store.cases
    broken.write_bytes(good)
    preprocess(open_dataset(raw), plans, workspace, ["full"], workers=1)
    assert case in CaseStore(store.folder).cases


def test_a_label_map_of_another_shape_is_told(raw, workspace, plans):
    first, second, _ = sorted((raw / "labelsTr").iterdir())
    shutil.copy(first, second)
    with pytest.raises(CasesFailed, match="the label map has shape") as failure:
        preprocess(open_dataset(raw), plans, workspace, ["full"], workers=1)
    assert str(second) in str(failure.value)


def test_a_label_map_in_another_place_is_told_and_not_learned_from(raw, workspace, plans):
    label = sorted((raw / "labelsTr").iterdir())[1]
    image = nibabel.load(label)
    moved = image.affine + np.outer([0, 0, 2, 0], [0, 0, 0, 1])  # 2 mm
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), label)
    with pytest.raises(CasesFailed, match=r"another geometry \(affine\) .* up to 2\.00 mm apart") as failure:
        fingerprint(open_dataset(raw), workspace, workers=1)
    assert [one.case for one in failure.value.failures] == [label.name.removesuffix(".nii.gz")]
    with pytest.raises(CasesFailed, match="another geometry"):
        preprocess(open_dataset(raw), plans, workspace, ["full"], workers=1)
    assert label.name.removesuffix(".nii.gz") not in CaseStore(workspace.store_folder(NAME, "plans_full")).cases


def test_too_small_a_disk_is_told_before_the_start(raw, workspace, plans, monkeypatch):
    usage = shutil.disk_usage(raw)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about 0\.0 GB, the disk has 0\.0 GB free"):
        preprocess(open_dataset(raw), plans, workspace, workers=1)
    assert not workspace.store_folder(NAME, "plans_full").exists()


def test_configurations_that_share_a_store_must_agree(raw, workspace, plans, make_plans):
    dataset = open_dataset(raw)
    twin = plans.configurations["full"].model_copy(update={"name": "twin"})
    shared_store = plans.model_copy(update={"configurations": {"full": plans.configurations["full"], "twin": twin}})
    preprocess(dataset, shared_store, workspace, workers=1)
    assert len(CaseStore(workspace.store_folder(dataset.name, "plans_full")).cases) == 4
    wrong = twin.model_copy(update={"spacing": (2.0, 2.0, 2.0)})
    clash = plans.model_copy(update={"configurations": {"full": plans.configurations["full"], "twin": wrong}})
    with pytest.raises(UserError, match="configurations full and twin share the store"):
        preprocess(dataset, clash, workspace, workers=1)


def test_a_damaged_copy_in_the_cache_is_read_again(raw, workspace, plans):
    dataset = open_dataset(raw)
    fingerprint(dataset, workspace, workers=1)
    cache = DecodedCache.of(workspace, dataset.name)
    damaged = sorted(cache.folder.glob("*.image.b2nd"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    assert len(CaseStore(workspace.store_folder(dataset.name, "plans_full")).cases) == 4


def test_annotated_classes_become_internal_values(raw):
    from dataclasses import replace

    dataset = open_dataset(raw)
    case = dataset.cases[0]
    assert annotated_values(case, dataset.labels) is None
    assert annotated_values(replace(case, annotated=("Posterior",)), dataset.labels) == (2,)
    assert annotated_values(replace(case, annotated=()), dataset.labels) == ()
    assert annotated_values(dataset.unlabelled[0], dataset.labels) == ()
    with pytest.raises(UserError, match=r"\['liver'\] are not among the labels"):
        annotated_values(replace(case, annotated=("liver",)), dataset.labels)


def test_an_interrupted_run_goes_on_where_it_stopped(raw, workspace, plans, monkeypatch):
    dataset = open_dataset(raw)
    reads = []

    def interrupted(paths, channels):
        if len(reads) == 2:
            raise KeyboardInterrupt
        reads.append(paths[0].name)
        return read_image(paths, channels=channels)

    monkeypatch.setattr("autoseg.preprocessing.decoded.read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess(dataset, plans, workspace, ["full"], workers=1)
    store = CaseStore(workspace.store_folder(dataset.name, "plans_full"))
    assert len(store.cases) == 2
    assert not store.sealed
    assert store.verify() == ()
    later = count_reads(monkeypatch)
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    assert len(later) == 2
    assert not set(later) & set(reads)
    assert CaseStore(store.folder).sealed


@pytest.mark.parametrize("stage", ["fingerprint", "preprocess"])
def test_a_second_command_at_once_is_refused_and_harms_nothing(raw, workspace, plans, monkeypatch, stage):
    dataset, refusals = open_dataset(raw), []
    first = {
        "fingerprint": lambda: fingerprint(dataset, workspace, workers=1),
        "preprocess": lambda: preprocess(dataset, plans, workspace, ["full"], workers=1),
    }[stage]

    def meanwhile(paths, channels):
        for second in (lambda: fingerprint(dataset, workspace), lambda: preprocess(dataset, plans, workspace)):
            with pytest.raises(UserError, match="another command is at work in ") as caught:
                second()
            refusals.append(caught.value)
        return read_image(paths, channels=channels)

    monkeypatch.setattr("autoseg.preprocessing.decoded.read_image", meanwhile)
    first()
    monkeypatch.undo()
    assert str(workspace.preprocessed_folder(NAME)) in refusals[0].what
    assert refusals[0].mend.startswith("wait until it has ended")
    preprocess(dataset, plans, workspace, ["full"], workers=1)
    store = CaseStore(workspace.store_folder(NAME, "plans_full"))
    assert store.sealed
    assert len(store.cases) == 4
    assert store.verify() == ()
    assert not list(workspace.preprocessed_folder(NAME).glob(".*"))
