import json
import re
import shutil
import threading

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg import waiting
from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.inference import folder as folder_module
from autoseg.inference.records import RECORD_FILE

OBLIQUE = np.array([[0.9, -0.3, 0.1, 12.0], [0.2, 1.1, 0.4, -7.0], [-0.1, -0.3, 1.6, 33.0], [0, 0, 0, 1]])


def oblique_affine() -> np.ndarray:
    """Orthogonal, oblique directions with spacing (0.9, 1.1, 1.6)."""
    rotation, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.9, 1.1, 1.6)
    affine[:3, 3] = OBLIQUE[:3, 3]
    return affine


def write_volume(path, seed, shape=(17, 19, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, oblique_affine()), path)


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(["b", "a", "d", "c"]):
        write_volume(tmp_path / "in" / f"{name}_0000.nii.gz", number, shape=(17 + number, 19, 9))
    return tmp_path / "in"


@pytest.fixture
def predictor(model_writer, tmp_path):
    return Predictor.load(model_writer(tmp_path / "model"), device="cpu", precision="fp32")


def label_of(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_outputs_lie_on_the_grid_of_their_images(predictor, images, tmp_path):
    results = predictor.predict_folder(images, tmp_path / "out", save_probabilities=True, uncertainty=True)
    assert [(r.case, r.error, r.skipped) for r in results] == [(name, None, False) for name in "abcd"]
    for result in results:
        image = nib.load(images / f"{result.case}_0000.nii.gz")
        label = nib.load(result.output)
        assert result.output == tmp_path / "out" / f"{result.case}.nii.gz"
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-5)
        theirs, ours = (sitk.ReadImage(str(p)) for p in (images / f"{result.case}_0000.nii.gz", result.output))
        np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-5)
        np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-4)
        assert set(np.unique(label.dataobj)) <= {0, 3, 7}
        values = np.array([0, 3, 7])
        probabilities = nib.load(tmp_path / "out" / f"{result.case}_probabilities.nii.gz").get_fdata()
        assert probabilities.shape == (*image.shape, 3)
        assert (values[probabilities.argmax(-1)] == np.asarray(label.dataobj)).mean() > 0.999
        doubt = nib.load(tmp_path / "out" / f"{result.case}_uncertainty.nii.gz")
        assert doubt.get_data_dtype() == np.float32
        assert doubt.shape == image.shape
        np.testing.assert_allclose(doubt.affine, image.affine, atol=1e-5)
        assert 0 <= doubt.get_fdata().min() < doubt.get_fdata().max() <= 1


def test_the_folder_gives_what_single_arrays_give_whatever_the_order(predictor, images, tmp_path, monkeypatch):
    listed = folder_module.list_prediction_cases
    monkeypatch.setattr(folder_module, "list_prediction_cases", lambda *a, **k: listed(*a, **k)[::-1])
    backwards = predictor.predict_folder(images, tmp_path / "backwards", workers=3)
    assert [r.case for r in backwards] == list("dcba")
    monkeypatch.setattr(folder_module, "list_prediction_cases", listed)
    for result in predictor.predict_folder(images, tmp_path / "forwards"):
        voxels = np.asarray(nib.load(images / f"{result.case}_0000.nii.gz").dataobj).T[np.newaxis]
        alone = predictor.predict_array(voxels, (1.6, 1.1, 0.9)).label
        np.testing.assert_array_equal(label_of(result.output).T, alone)
        np.testing.assert_array_equal(label_of(tmp_path / "backwards" / result.output.name).T, alone)


def test_a_failing_case_leaves_the_others_alone(predictor, images, tmp_path, caplog):
    content = (images / "c_0000.nii.gz").read_bytes()
    (images / "c_0000.nii.gz").write_bytes(content[: len(content) // 2])
    results = predictor.predict_folder(images, tmp_path / "out")
    assert [r.case for r in results if r.error] == ["c"]
    assert "c_0000.nii.gz" in results[2].error
    assert results[2].output is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["a.nii.gz", "b.nii.gz", "d.nii.gz", RECORD_FILE]
    )
    assert "case c failed" in caplog.text


@pytest.mark.parametrize("stage", ["predict_prepared", "write_label"])
def test_a_failure_of_any_stage_is_one_of_the_case(predictor, images, tmp_path, monkeypatch, stage):
    owner = predictor if stage == "predict_prepared" else folder_module
    original, calls = getattr(owner, stage), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("struck by lightning")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, stage, failing)
    results = predictor.predict_folder(images, tmp_path / "out")
    assert [r.error for r in results] == [None, "RuntimeError: struck by lightning", None, None]
    monkeypatch.setattr(owner, stage, original)
    again = predictor.predict_folder(images, tmp_path / "out")
    assert [(r.error, r.skipped) for r in again] == [(None, True), (None, False), (None, True), (None, True)]


def test_finished_cases_are_skipped_until_something_changes(predictor, model_writer, images, tmp_path):
    out = tmp_path / "out"

    def skipped(used=predictor, **settings):
        return "".join(r.case for r in used.predict_folder(images, out, **settings) if r.skipped)

    assert skipped() == ""
    assert skipped() == "abcd"
    assert skipped(restart=True) == ""
    (out / "a.nii.gz").unlink()
    assert skipped() == "bcd"
    write_volume(images / "b_0000.nii.gz", seed=77)
    assert skipped() == "acd"
    (out / "c.nii.gz").write_bytes(b"cut")
    assert skipped() == "abd"
    assert skipped(uncertainty=True) == ""
    other = Predictor.load(model_writer(tmp_path / "other", {"folds": ("0", "1")}), device="cpu", precision="fp32")
    assert skipped(other, uncertainty=True) == ""
    assert skipped(other, uncertainty=True) == "abcd"
    (out / RECORD_FILE).write_text("{broken")
    assert skipped(other, uncertainty=True) == ""
    assert set(json.loads((out / RECORD_FILE).read_text())["cases"]) == set("abcd")


def test_an_interrupted_run_keeps_what_is_finished_and_ends_its_threads(predictor, images, tmp_path, monkeypatch):
    original, calls = predictor.predict_prepared, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(predictor, "predict_prepared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predictor.predict_folder(images, tmp_path / "out")
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write"))]
    monkeypatch.setattr(predictor, "predict_prepared", original)
    again = predictor.predict_folder(images, tmp_path / "out")
    assert [r.case for r in again if r.skipped] == ["a", "b"]
    assert not [r for r in again if r.error]


def test_reading_ahead_is_bounded(predictor, tmp_path, monkeypatch):
    for number in range(9):
        write_volume(tmp_path / "in" / f"{number}_0000.nii.gz", number, shape=(8, 8, 8))
    read, done, most = folder_module.read_image, [], []

    def counting(paths, **kwargs):
        done.append("read")
        most.append(done.count("read") - done.count("predicted"))
        return read(paths, **kwargs)

    predict = predictor.predict_prepared

    def noting(*args, **kwargs):
        done.append("predicted")
        return predict(*args, **kwargs)

    monkeypatch.setattr(folder_module, "read_image", counting)
    monkeypatch.setattr(predictor, "predict_prepared", noting)
    predictor.predict_folder(tmp_path / "in", tmp_path / "out", workers=2)
    assert max(most) <= 4
    assert done.count("read") == 9


def test_a_full_disk_is_told_before_writing(predictor, images, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    results = predictor.predict_folder(images, tmp_path / "out")
    assert all("the disk has 0 MiB left" in r.error for r in results)
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_in_pictures_out(model_writer, tmp_path):
    folder = model_writer(
        tmp_path / "model", {"plans": {"spacing": (1.0, 1.0), "normalization": "rgb_to_0_1"}}, channels=3,
        file_ending=".png",
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (23, 31, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "in" / "leaf.png"))
    predictor = Predictor.load(folder, device="cpu", precision="fp32")
    (result,) = predictor.predict_folder(
        tmp_path / "in", tmp_path / "out", save_probabilities=True, uncertainty=True
    )  # fmt: skip
    assert result.error is None
    assert result.output.name == "leaf.png"
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(result.output)))
    assert label.shape == (23, 31)
    expected = predictor.predict_array(pixels.transpose(2, 0, 1)[:, None], (999, 1, 1), save_probabilities=True)
    np.testing.assert_array_equal(label, expected.label[0])
    assert len(np.unique(label)) > 1
    saved = np.load(tmp_path / "out" / "leaf_probabilities.npy")
    np.testing.assert_allclose(saved.reshape(3, 23, 31), expected.probabilities[:, 0], atol=1e-5)
    assert nib.load(tmp_path / "out" / "leaf_uncertainty.nii.gz").shape[:2] == (31, 23)


def test_a_dicom_series_is_one_case(predictor, tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    voxels = np.random.default_rng(0).integers(0, 900, (6, 20, 18)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(6):
        part = image[:, :, number]
        values = {
            "0008|0060": "MR", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|0032": f"0\\0\\{number * 1.5}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(number + 1),
            "0028|0030": "1\\1", "0018|0050": "1.5",
        }  # fmt: skip
        for key, value in values.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        writer.Execute(part)
    (result,) = predictor.predict_folder(folder, tmp_path / "out")
    assert result.error is None
    assert result.output.name == "series.nii.gz"
    assert label_of(result.output).shape == (18, 20, 6)
    assert predictor.predict_folder(folder, tmp_path / "out")[0].skipped
    (folder / "0.dcm").touch()
    assert not predictor.predict_folder(folder, tmp_path / "out")[0].skipped


def test_input_and_output_must_differ(predictor, images):
    with pytest.raises(UserError, match="same folder"):
        predictor.predict_folder(images, images)


@pytest.mark.parametrize(("slow", "stage"), [("read_image", "reading"), ("write_label", "writing")])
def test_a_reader_or_writer_that_hangs_is_told(predictor, images, tmp_path, monkeypatch, slow, stage):
    monkeypatch.setattr(waiting, "SILENCE_SECONDS", 0.01)
    original, told = getattr(folder_module, slow), threading.Event()
    monkeypatch.setattr(folder_module, slow, lambda *a, **k: told.wait(20) and original(*a, **k))
    messages = []

    def note(message, *arguments):
        text = message % arguments
        if stage in text:  # on a busy machine the other one may be slow for once, too
            messages.append(text)
            told.set()

    monkeypatch.setattr(waiting.log, "warning", note)
    results = predictor.predict_folder(images, tmp_path / "out")
    assert not any(result.error for result in results)
    assert re.match(rf"prediction, {stage}: no case was finished for \d s; at work: case a for \d s", messages[0])


@pytest.mark.parametrize(
    ("names", "settings", "file"),
    [
        (("a", "a_uncertainty"), {"uncertainty": True}, "a_uncertainty.nii.gz"),
        (("a", "a_probabilities"), {"save_probabilities": True}, "a_probabilities.nii.gz"),
        (("Case", "case"), {}, "case.nii.gz"),
        (("a", "A_Uncertainty"), {"uncertainty": True}, "a_uncertainty.nii.gz"),
    ],
)
def test_cases_that_would_overwrite_each_other_are_refused(predictor, tmp_path, names, settings, file):
    for seed, name in enumerate(names):
        write_volume(tmp_path / "in" / f"{name}_0000.nii.gz", seed)
    with pytest.raises(UserError, match="would both be written to") as caught:
        predictor.predict_folder(tmp_path / "in", tmp_path / "out", **settings)
    assert all(name in str(caught.value) for name in names)
    assert file in str(caught.value)
    assert "rename the images" in caught.value.mend
    assert not (tmp_path / "out").exists()
    write_volume(tmp_path / "free" / "a_0000.nii.gz", 0)
    write_volume(tmp_path / "free" / "a_uncertainty_0000.nii.gz", 1)
    assert not any(result.error for result in predictor.predict_folder(tmp_path / "free", tmp_path / "out"))


def test_a_prediction_does_not_replace_its_image(predictor, tmp_path):
    write_volume(tmp_path / "in" / "a.nii.gz", 0)
    content = (tmp_path / "in" / "a.nii.gz").read_bytes()
    with pytest.raises(UserError, match=r"a\.nii\.gz: the prediction would replace this image"):
        predictor.predict_folder(tmp_path / "in" / "a.nii.gz", tmp_path / "in")
    assert (tmp_path / "in" / "a.nii.gz").read_bytes() == content


def test_voxels_that_are_not_finite_are_told_with_file_channel_and_number(predictor, images, tmp_path):
    file = images / "b_0000.nii.gz"
    stored = nib.load(file)
    voxels = stored.get_fdata(dtype=np.float32)
    voxels[0, 0, :3], voxels[1, 1, :2], voxels[2, 2, 0] = np.nan, np.inf, -np.inf
    nib.save(nib.Nifti1Image(voxels, stored.affine), file)
    errors = {result.case: result.error for result in predictor.predict_folder(images, tmp_path / "out")}
    assert errors["b"].startswith(f"{file}: channel 0 has 3 NaN and 3 infinite voxel(s)")
    assert "To mend it: replace them" in errors["b"]
    assert [errors[name] for name in "acd"] == [None] * 3


def test_networks_are_told_what_is_known_of_the_images(predictor, images, tmp_path, monkeypatch):
    told = []
    network = predictor.members[0].networks[0]
    monkeypatch.setattr(type(network), "check_images", lambda self, description: told.append(description))
    for place in (images, images / "a_0000.nii.gz"):  # without a description, the second a single file
        predictor.predict_folder(place, tmp_path / "out")
    (images / "dataset.json").write_text(json.dumps({"attention_maps": 1}))
    predictor.predict_folder(images, tmp_path / "out")
    folder = tmp_path / "Dataset001_A" / "imagesTs"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("dataset.json"))
    (folder.parent / "dataset.json").write_text(json.dumps({"attention_maps": 2}))
    predictor.predict_folder(folder, tmp_path / "out2")
    assert told == [{}, {}, {"attention_maps": 1}, {"attention_maps": 2}]

    def refuse(self, description):
        raise UserError("of another ViT")

    monkeypatch.setattr(type(network), "check_images", refuse)
    with pytest.raises(UserError, match="of another ViT"):
        predictor.predict_folder(images, tmp_path / "out3")
    assert not (tmp_path / "out3").exists()  # before anything is predicted
