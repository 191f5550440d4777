"""Fingerprints: by hand, and against the one that nnU-Net made of the same 200 cases."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import CasesFailed, UserError
from autoseg.fingerprinting import Fingerprint, fingerprint
from autoseg.labels import Labels
from autoseg.preprocessing import value_sketch
from autoseg.preprocessing.value_sketch import ValueSketch, pool
from autoseg.raw import Case, Dataset, open_dataset
from autoseg.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def make_dataset(folder: Path, cases: dict[str, tuple[np.ndarray, np.ndarray | None]], labels: Labels) -> Dataset:
    """Cases of arrays (Z, Y, X) with spacing (3, 2, 1), as NIfTI files."""
    import nibabel

    made = []
    for name, (image, label) in cases.items():
        paths = []
        for kind, array in (("image", image), ("label", label)):
            if array is not None:
                file = nibabel.Nifti1Image(array.T, np.diag([1.0, 2.0, 3.0, 1.0]))
                paths.append(folder / f"{name}_{kind}.nii.gz")
                nibabel.save(file, paths[-1])
        made.append(Case(id=name, images=(paths[0],), label=paths[1] if len(paths) > 1 else None))
    return Dataset(
        name="Dataset001_Hand",
        folder=folder,
        channel_names=("MRI",),
        labels=labels,
        file_ending=".nii.gz",
        cases=tuple(case for case in made if case.label),
        unlabelled=tuple(case for case in made if not case.label),
        test=(),
        description={},
    )


def hand_made() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case a: box (2, 3, 4) of 4 x 4 x 4, foreground 1 and 3. Case b: full, foreground three times 10."""
    image, label = np.zeros((4, 4, 4), np.int16), np.zeros((4, 4, 4), np.uint8)
    image[1:3, 0:3] = 7
    image[1, 0, 0], image[2, 2, 3] = 1, 3
    label[1, 0, 0], label[2, 2, 3] = 1, 5
    second, second_label = np.full((5, 4, 4), 10, np.int16), np.zeros((5, 4, 4), np.uint8)
    second_label[0, 0, :3] = 1
    return {"a": (image, label), "b": (second, second_label)}


LABELS = Labels(values={"one": (1,), "five": (5,)})


def test_by_hand(tmp_path, workspace):
    found = fingerprint(make_dataset(tmp_path, hand_made(), LABELS), workspace, workers=1)
    assert (found.num_cases, found.cases, found.channel_names, found.num_labels) == (2, ("a", "b"), ("MRI",), 3)
    assert found.spacings == ((3, 2, 1), (3, 2, 1))
    assert found.shapes_after_crop == ((2, 3, 4), (5, 4, 4))
    assert found.median_relative_size == pytest.approx((24 / 64 + 1) / 2)
    values = found.intensities[0]
    assert (values.min, values.max) == (1, 10)
    assert values.mean == pytest.approx((2 + 10) / 2)  # both cases weigh the same, whatever their foreground
    assert values.std == pytest.approx(np.std([1, 3, 10, 10]))
    assert (values.percentile_00_5, values.median, values.percentile_99_5) == (1, 3, 10)
    frequencies = {one.name: (one.voxels, one.cases) for one in found.class_frequencies}
    assert frequencies == {"background": (22 + 77, 2), "one": (4, 2), "five": (1, 1)}
    path = workspace.preprocessed_folder("Dataset001_Hand") / "fingerprint.json"
    assert Fingerprint.read(path) == found


def test_regions_and_ignore_are_counted(tmp_path, workspace):
    labels = Labels(
        values={"both": (1, 5), "five": (5,)}, regions=True, paint_order=("both", "five"), paint_values=(1, 5)
    )
    found = fingerprint(make_dataset(tmp_path, hand_made(), labels), workspace, workers=1)
    assert {one.name: one.voxels for one in found.class_frequencies} == {"background": 99, "both": 5, "five": 1}
    ignoring = Labels(values={"one": (1,)}, ignore=(5,))
    found = fingerprint(make_dataset(tmp_path, hand_made(), ignoring), workspace, workers=1)
    assert {one.name: one.voxels for one in found.class_frequencies} == {"background": 99, "one": 4, "ignore": 1}
    assert found.num_labels == 3


def test_nothing_is_done_twice_unless_something_changed(tmp_path, workspace, monkeypatch):
    reads = []
    from autoseg.preprocessing import decoded

    monkeypatch.setattr(
        "autoseg.fingerprinting.read_cropped", lambda *args: reads.append(args[0].id) or decoded.read_cropped(*args)
    )
    dataset = make_dataset(tmp_path, hand_made(), LABELS)
    first = fingerprint(dataset, workspace, workers=1)
    assert reads == ["a", "b"]
    assert fingerprint(dataset, workspace, workers=1) == first
    assert len(reads) == 2
    image = dataset.cases[1].images[0]
    image.touch()
    assert fingerprint(dataset, workspace, workers=1) == first  # the content counts
    assert len(reads) == 2
    content = bytearray(image.read_bytes())
    content[4:8] = b"time"  # in the header of gzip, which says nothing of the image
    image.write_bytes(content)
    second = fingerprint(dataset, workspace, workers=1)
    assert reads == ["a", "b", "b"]  # a comes from the cache of decoded cases
    assert second.input_hash != first.input_hash
    assert second.intensities == first.intensities
    fingerprint(dataset, workspace, workers=1, restart=True)
    assert reads == ["a", "b", "b", "a", "b"]


def test_failures_are_listed_and_tried_again(tmp_path, workspace):
    dataset = make_dataset(tmp_path, hand_made(), LABELS)
    missing = replace(dataset.cases[1], images=(tmp_path / "nowhere.nii.gz",))
    with pytest.raises(CasesFailed, match="case b, fingerprint"):
        fingerprint(replace(dataset, cases=(dataset.cases[0], missing)), workspace, workers=1)
    path = workspace.preprocessed_folder(dataset.name) / "fingerprint.json"
    assert (Fingerprint.read(path).cases, Fingerprint.read(path).failed) == (("a",), ("b",))
    with pytest.raises(CasesFailed):
        fingerprint(replace(dataset, cases=(dataset.cases[0], missing)), workspace, workers=1)
    assert fingerprint(dataset, workspace, workers=1).failed == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_case_with_voxels_that_are_not_finite_spoils_no_statistics(tmp_path, workspace, value):
    cases = hand_made()
    clean = fingerprint(make_dataset(tmp_path, cases, LABELS), workspace, workers=1)
    image = cases["a"][0].astype(np.float32)
    image[0, 0, 0] = value
    cases["c"] = image, cases["a"][1]
    with pytest.raises(CasesFailed, match=r"c_image.nii.gz: channel 0 holds 1 voxel\(s\) that are not finite"):
        fingerprint(make_dataset(tmp_path, cases, LABELS), workspace, workers=1)
    found = Fingerprint.read(workspace.preprocessed_folder("Dataset001_Hand") / "fingerprint.json")
    assert found.failed == ("c",)
    assert found.intensities == clean.intensities
    assert found.cases == clean.cases


def test_no_foreground_and_no_cases_are_user_errors(tmp_path, workspace):
    cases = {"a": (hand_made()["a"][0], np.zeros((4, 4, 4), np.uint8))}
    dataset = make_dataset(tmp_path, cases, LABELS)
    with pytest.raises(UserError, match="no label map has any foreground"):
        fingerprint(dataset, workspace, workers=1)
    with pytest.raises(UserError, match="no training cases"):
        fingerprint(replace(dataset, cases=()), workspace, workers=1)


def test_without_label_maps_the_non_zero_region_counts(tmp_path, workspace):
    cases = {name: (image, None) for name, (image, _) in hand_made().items()}
    found = fingerprint(make_dataset(tmp_path, cases, LABELS), workspace, workers=1)
    assert found.num_cases == 2
    assert found.intensities[0].mean == pytest.approx(((22 * 7 + 4) / 24 + 10) / 2)
    assert [one.voxels for one in found.class_frequencies] == [0, 0, 0]


def test_no_room_for_the_cache_is_no_obstacle(tmp_path, workspace, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("autoseg.fingerprinting.shutil.disk_usage", lambda path: usage._replace(free=10))
    found = fingerprint(make_dataset(tmp_path, hand_made(), LABELS), workspace, workers=1)
    assert found.num_cases == 2
    assert "preprocessing reads all files again" in caplog.text
    assert not (workspace.preprocessed_folder(found.dataset_name) / "decoded").exists()


def test_the_fingerprint_of_nnunet(shared, workspace):
    """200 hippocampi: shapes and spacings are equal, intensities differ by nnU-Net's random sampling only."""
    dataset = open_dataset(shared / "data" / "Dataset004_Hippocampus")
    found = fingerprint(dataset, workspace, workers=1)
    reference = json.loads((shared / "models" / "nnunet_hippocampus" / "dataset_fingerprint.json").read_text())
    assert [list(shape) for shape in found.shapes_after_crop] == reference["shapes_after_crop"]
    assert [list(spacing) for spacing in found.spacings] == reference["spacings"]
    assert found.median_relative_size == reference["median_relative_size_after_cropping"]
    for name, value in reference["foreground_intensity_properties_per_channel"]["0"].items():
        assert getattr(found.intensities[0], name) == pytest.approx(value, rel=5e-4), name


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([np.float32, np.int16, np.uint8]))
@settings(max_examples=40, deadline=None)
def test_pooled_statistics_are_those_of_equal_samples(seed, count, kind):
    random = np.random.default_rng(seed)
    samples = [(random.gamma(2, 20, size=600)).astype(kind) for _ in range(count)]
    pooled = pool([ValueSketch.of(sample) for sample in samples])
    together = np.concatenate(samples).astype(np.float64)
    assert pooled.mean == pytest.approx(together.mean())
    assert pooled.std == pytest.approx(together.std(), abs=1e-9)
    assert (pooled.min, pooled.max) == (together.min(), together.max())
    for name, percentile in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
        expected = np.percentile(together, percentile, method="inverted_cdf")
        assert getattr(pooled, name) == pytest.approx(expected), name


def test_reduced_sketches_stay_close(monkeypatch):
    monkeypatch.setattr(value_sketch, "MOST_PER_CASE", 2000)
    monkeypatch.setattr(value_sketch, "MOST_POOLED", 2500)
    samples = [np.random.default_rng(seed).normal(seed, 1, 20_000) for seed in range(40)]
    sketches = [ValueSketch.of(sample) for sample in samples]
    assert max(len(sketch.values) for sketch in sketches) <= 2000
    pooled, together = pool(sketches), np.concatenate(samples)
    assert pooled.mean == pytest.approx(together.mean())
    for name, percentile in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
        assert getattr(pooled, name) == pytest.approx(np.percentile(together, percentile), abs=0.02), name
