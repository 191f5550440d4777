"""Artefacts that are cut, or of which one bit is flipped, and that the same command makes anew."""

import json

import nibabel as nib
import numpy as np
import pytest
from bad_data import BAD, sound
from damage import damage
from model_factory import make_plans, write_model

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.fingerprinting import FINGERPRINT_FILE, Fingerprint, fingerprint
from autoseg.inference import Predictor
from autoseg.inference.records import RECORD_FILE, Inputs, Record
from autoseg.preprocessing import preprocess
from autoseg.raw import open_dataset
from autoseg.storage import read_json
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

TIMES = 12


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("name", ["a.nii.gz", "a_probabilities.nii.gz", "a_uncertainty.nii.gz"])
def test_a_damaged_prediction_is_made_anew(name, flips, tmp_path, caplog):
    predictor = Predictor.load(write_model(tmp_path / "model"), device="cpu", precision="fp32")
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "a_0000.nii.gz")

    def predict():
        (result,) = predictor.predict_folder(
            tmp_path / "in", tmp_path / "out", save_probabilities=True, uncertainty=True
        )
        assert result.error is None
        return result.skipped

    assert not predict()
    assert predict()
    file = tmp_path / "out" / name
    content = file.read_bytes()
    values = nib.load(file).get_fdata()
    for seed in range(3):
        file.write_bytes(damage(content, seed, flips=flips))
        assert not predict()
        assert f"case a is predicted again: {name}" in caplog.text
        np.testing.assert_array_equal(nib.load(file).get_fdata(), values)
        assert predict()


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """A workspace with a store of two cases, its data set and plans, and what the store holds."""
    folder = tmp_path_factory.mktemp("preprocessed")
    place = Workspace.open(folder / "workspace")
    data = sound(folder)
    plans = make_plans("3d", channels=1, outputs=3)
    preprocess(data.folder, plans, place, workers=1)
    store = place.store_folder(open_dataset(data.folder).name, "test_3d")
    return place, data.folder, plans, {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("kind", ["image.b2nd", "label.b2nd", "locations.npy", "index.json"])
def test_damaged_preprocessed_cases_are_repaired_by_preprocessing_again(kind, flips, preprocessed, caplog):
    place, data, plans, sound_files = preprocessed
    file = next(path for path in sound_files if path.name.endswith(kind))
    for seed in range(3):
        changed = damage(sound_files[file], seed, flips=flips)
        file.write_bytes(changed)
        preprocess(data, plans, place, workers=1)
        if kind != "index.json":
            assert f"is preprocessed again: {file.name} is missing or damaged" in caplog.text
            assert file.read_bytes() == sound_files[file]
        found = json.loads(file.with_name("index.json").read_bytes()) if kind == "index.json" else None
        assert found is None or found["cases"] == json.loads(sound_files[file])["cases"]
        assert CaseStore(file.parent if kind == "index.json" else file.parents[1]).verify() == ()
        caplog.clear()
        preprocess(data, plans, place, workers=1)
        assert "again" not in caplog.text


@pytest.mark.parametrize("how", ["cut", "flipped", "another form"])
def test_a_damaged_fingerprint_is_made_anew(how, tmp_path, caplog):
    place, data = Workspace.open(tmp_path / "workspace"), sound(tmp_path)
    expected = fingerprint(data.folder, place, workers=1)
    file = place.preprocessed_folder(expected.dataset_name) / FINGERPRINT_FILE
    content = file.read_bytes()
    changed = {
        "cut": content[:99],
        "flipped": content.replace(b'"num_cases": 2', b'"num_cases": 3'),
        "another form": b"[]",
    }[how]
    assert changed != content
    file.write_bytes(changed)
    with pytest.raises(UserError, match=FINGERPRINT_FILE):  # who only reads it is told
        Fingerprint.read(file)
    assert fingerprint(data.folder, place, workers=1) == expected
    assert caplog.text.count(f"the fingerprint is made anew: {file}: ") == 1
    assert file.read_bytes() == content
    caplog.clear()
    assert fingerprint(data.folder, place, workers=1) == expected
    assert not caplog.records


@pytest.mark.parametrize("flips", [True, False])
def test_a_damaged_record_of_predictions_is_made_anew(flips, tmp_path):
    (tmp_path / BAD).write_text("image")
    record = Record(tmp_path, "model")
    record.finish("a", Inputs.seen([tmp_path / BAD]), [])
    assert Record(tmp_path, "model").is_finished("a", [tmp_path / BAD])
    file = tmp_path / RECORD_FILE
    content = file.read_bytes()
    for seed in range(4 * TIMES):
        file.write_bytes(damage(content, seed, flips=flips))
        same = flips and _values(file) == json.loads(content)
        assert Record(tmp_path, "model").is_finished("a", [tmp_path / BAD]) == same


HIPPOCAMPUS = "Dataset004_Hippocampus"
TRAIN = ["train", HIPPOCAMPUS, "3d_fullres", "0", "--plans", "tiny", "--set", "steps=2"]


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 1, content[-2] ^ 1]) + content[-1:]


def cut(content):
    return content[:99]


@pytest.fixture
def trained(place, capsys):
    """A finished run, and what calls a command in its workspace: it returns the exit code and what was said."""

    def call(*words):
        code = run([*words, "--device", "cpu", "--workers", "1", "--workspace", str(place)])
        return code, capsys.readouterr().err

    assert call(*TRAIN)[0] == 0
    return place / "results" / HIPPOCAMPUS / "supervised__tiny__3d_fullres" / "fold_0", call


@pytest.mark.parametrize(
    ("name", "change"), [("weights.safetensors", flipped), ("weights.safetensors", None), ("plans.json", cut)]
)
def test_a_damaged_file_of_a_finished_run_is_restored_from_its_checkpoint(name, change, trained):
    folder, call = trained
    files = {path: path.read_bytes() for path in (folder / name, folder / "state.pt")}
    damaged = folder / name
    if change is None:
        damaged.unlink()
    else:
        damaged.write_bytes(change(files[damaged]))
        code, said = call("find-best", HIPPOCAMPUS)
        assert code == 2
        assert f"error: {damaged}: " in said
        assert said.endswith(f"To mend it: run: autoseg {' '.join(TRAIN)} --workspace {folder.parents[3]}\n")
    code, said = call(*TRAIN)
    assert code == 0
    assert "finished already" not in said
    if change is not None:
        assert said.count(f"warning: {damaged}: ") == 1
        assert "the run goes on from its checkpoint, which writes it anew" in said
    assert {path: path.read_bytes() for path in files} == files
    assert (read_json(folder / "run.json")["status"], read_json(folder / "run.json")["steps_done"]) == ("finished", 2)
    code, said = call(*TRAIN)
    assert (code, "finished already" in said, "warning" in said) == (0, True, False)
    assert call("find-best", HIPPOCAMPUS)[0] == 0


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_damaged_weights_without_a_sound_checkpoint_are_told_with_restart(how, trained):
    folder, call = trained
    for file in (folder / "weights.safetensors", folder / "state.pt"):
        file.write_bytes(flipped(file.read_bytes()))
    if how == "missing":
        (folder / "state.pt").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = call("find-best", HIPPOCAMPUS)
    assert code == 2
    told = f"run: autoseg {' '.join(TRAIN)} --workspace {folder.parents[3]} --restart\n"
    assert said.endswith(f"To mend it: {told}")
    code, said = call(*TRAIN)
    assert code == 2
    assert f"error: {folder / 'state.pt'}: the checkpoint is {how}" in said
    assert "--restart" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert call(*TRAIN, "--restart")[0] == 0
    assert call("find-best", HIPPOCAMPUS)[0] == 0


@pytest.mark.parametrize("change", [cut, lambda _: b"[]"])
def test_a_damaged_record_of_a_run_is_told_with_the_command_that_trains_anew(change, trained):
    folder, call = trained
    file = folder / "run.json"
    file.write_bytes(change(file.read_bytes()))
    for words in (TRAIN, ["find-best", HIPPOCAMPUS]):
        code, said = call(*words)
        assert code == 2
        assert f"error: {file}: " in said
        assert (
            f"To mend it: run: autoseg train {HIPPOCAMPUS} 3d_fullres 0 --plans tiny --restart, with the other options "
            "of its first start\n"
        ) in said
    assert call(*TRAIN, "--restart")[0] == 0
    assert call("find-best", HIPPOCAMPUS)[0] == 0


def _values(file):
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None
