"""Artefacts that are cut, or of which one bit is flipped, are named before anything is taken from them."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from bad_data import sound
from damage import damage
from model_factory import make_plans, write_model
from torch import nn

from autoseg.errors import UserError
from autoseg.evaluation.summary import summarize, write_summary
from autoseg.fingerprinting import ClassFrequency, Fingerprint
from autoseg.model_folder import read_model
from autoseg.plans import Plans
from autoseg.preprocessing.crop import crop
from autoseg.preprocessing.decoded import DecodedCache
from autoseg.raw import make_splits, open_dataset, read_image
from autoseg.raw.splits import SPLITS_FILE
from autoseg.storage import read_json
from autoseg.store import CaseProperties, CaseStore, Preprocessed
from autoseg.training.checkpoint import Progress, State, load_state, load_weights, save_state, save_weights
from autoseg.training.log import RunLog, read_events, read_run, write_run

TIMES = 12
SHAPE = (6, 20, 20)


def store(folder, *, seal=True):
    generator = np.random.default_rng(0)
    properties = CaseProperties(
        spacing=(1, 1, 1), shape_before_crop=SHAPE, crop_box=tuple((0, size) for size in SHAPE),
        shape_after_crop=SHAPE, shape_resampled=SHAPE,
    )  # fmt: skip
    label = generator.integers(0, 3, SHAPE).astype(np.int16)
    case = Preprocessed(generator.normal(size=(1, *SHAPE)).astype(np.float32), label, properties)
    made = CaseStore(folder)
    made.write("a", case, {1: np.argwhere(label == 1)})
    if seal:
        made.seal()


def read_store(folder, cache):
    case = CaseStore(folder, cache=cache).read("a")
    part = (slice(0, 2), slice(0, 3), slice(0, 3))
    return case.image(part), case.label(part), case.locations


def state():
    network = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return State({"network": network}, {"network": optimizer}, Progress(step=3))


def run_with_weights(folder):
    write_run(folder, status="finished", weights_sha256=save_weights(folder, state().modules["network"]))


# What writes the artefact below a folder, the file of it that is damaged, and what reads it.
CHECKSUMMED = {
    "image of a store": (store, "cases/a.image.b2nd", lambda folder: read_store(folder, False)),
    "image of a store in memory": (store, "cases/a.image.b2nd", lambda folder: read_store(folder, True)),
    "label map of a store": (store, "cases/a.label.b2nd", lambda folder: read_store(folder, False)),
    "locations of a store": (store, "cases/a.locations.npy", lambda folder: read_store(folder, False)),
    "weights of a model": (write_model, "members/member0/fold_0.safetensors", read_model),
    "plans of a model": (write_model, "members/member0/plans.json", read_model),
    "checkpoint": (lambda folder: save_state(folder, state()), "state.pt", lambda folder: load_state(folder, state())),
    "weights of a run": (run_with_weights, "weights.safetensors", lambda f: load_weights(f / "weights.safetensors")),
    "raw image": (
        lambda folder: sound(folder),
        "data/imagesTr/bad_0000.nii.gz",
        lambda folder: read_image([folder / "data/imagesTr/bad_0000.nii.gz"], channels=1),
    ),
}
# JSON files carry a checksum of their values: spaces and line breaks may differ.
SEALED = {
    "plans of a run": (
        lambda folder: make_plans("3d", channels=1, outputs=3).write(folder / "plans.json"),
        "plans.json",
        lambda folder: Plans.read(folder / "plans.json", editable=False),
    ),
    "description of a model": (write_model, "model.json", read_model),
    "index of a store": (store, "index.json", lambda folder: CaseStore(folder)._records),
    "record of a case": (partial(store, seal=False), "cases/a.json", lambda folder: CaseStore(folder)._records),
    "fingerprint": (
        lambda folder: FINGERPRINT.write(folder / "fingerprint.json"),
        "fingerprint.json",
        lambda folder: Fingerprint.read(folder / "fingerprint.json"),
    ),
    "record of a run": (lambda folder: write_run(folder, status="finished", steps=3), "run.json", read_run),
    "scores": (
        lambda folder: write_summary(summarize({"a": {"x": {"dice": 0.5}}}), folder / "summary.json"),
        "summary.json",
        lambda folder: read_json(folder / "summary.json"),
    ),
}
DESCRIBED = {
    "description of a data set": (sound, "data/dataset.json", lambda folder: open_dataset(folder / "data")),
}
FINGERPRINT = Fingerprint(
    dataset_name="Dataset001_Test", num_cases=1, cases=("a",), channel_names=("MRI",), spacings=((1, 1, 1.5),),
    shapes_after_crop=((3, 4, 5),), median_relative_size=0.75, num_labels=2, input_hash="0123",
    intensities=make_plans("3d", channels=1, outputs=3).intensities,
    class_frequencies=(ClassFrequency(name="near", voxels=7, cases=1),),
)  # fmt: skip


def times_named(folder, kind, *, flips):
    """Return how often the damaged file was named, with the mend, out of `TIMES`."""
    write, name, read = kind
    write(folder)
    file = folder / name
    content = file.read_bytes()
    read(folder)  # it is sound
    named = 0
    for seed in range(TIMES):
        file.write_bytes(damage(content, seed, flips=flips))
        with pytest.raises(UserError) as caught:
            read(folder)
        named += file.name in str(caught.value) and bool(caught.value.mend)
    file.write_bytes(content)
    read(folder)
    return named


@pytest.mark.parametrize("name", [name for name in CHECKSUMMED if name != "raw image"])
def test_a_flipped_bit_is_named(name, tmp_path):
    assert times_named(tmp_path, CHECKSUMMED[name], flips=True) == TIMES


def test_a_flipped_bit_of_a_raw_image_changes_no_voxel(tmp_path):
    """A gzip stream also tells a time and a system, which no checksum covers and nobody uses."""
    data = sound(tmp_path)
    content = data.image.read_bytes()
    expected = read_image([data.image], channels=1)
    named = 0
    for seed in range(4 * TIMES):
        data.image.write_bytes(damage(content, seed, flips=True))
        try:
            found = read_image([data.image], channels=1)
        except UserError as error:
            named += data.image.name in str(error)
        else:
            np.testing.assert_array_equal(found.data, expected.data)
            assert found.geometry == expected.geometry
    assert named > 3 * TIMES


@pytest.mark.parametrize("name", SEALED)
def test_a_flipped_bit_of_a_description_is_named(name, tmp_path):
    """Where the flip leaves the same values, as in the last digits of a number or between two words, they are read."""
    write, file, read = SEALED[name]
    write(tmp_path)
    file = tmp_path / file
    content, expected, named = file.read_bytes(), read(tmp_path), 0
    for seed in range(8 * TIMES):
        file.write_bytes(damage(content, seed, flips=True))
        try:
            assert read(tmp_path) == expected
        except UserError as error:
            named += file.name in str(error) and bool(error.mend)
        else:
            named += json.loads(file.read_bytes()) == json.loads(content)
    assert named == 8 * TIMES


def test_changed_plans_are_used_with_a_warning(tmp_path, caplog):
    file = tmp_path / "plans.json"
    plans = make_plans("3d", channels=1, outputs=3)
    plans.write(file)
    assert Plans.read(file) == plans
    assert not caplog.records
    file.write_text(file.read_text().replace('"batch_size": 2', '"batch_size": 3'))
    assert Plans.read(file).configurations["3d"].batch_size == 3
    assert "plans.json: the content does not match its checksum" in caplog.text
    with pytest.raises(UserError, match=r"plans\.json: the content does not match its checksum"):
        Plans.read(file, editable=False)


@pytest.mark.parametrize("name", [*CHECKSUMMED, *SEALED, *DESCRIBED])
def test_a_cut_file_is_named(name, tmp_path):
    assert times_named(tmp_path, (CHECKSUMMED | SEALED | DESCRIBED)[name], flips=False) == TIMES


@pytest.mark.parametrize("flips", [True, False])
def test_a_damaged_log_keeps_its_other_lines(flips, tmp_path):
    """A log is read by people and reports only; what stands in an intact line is still told."""
    log = RunLog(tmp_path)
    for step in range(1, 9):
        log.event("step", step=step, loss=1 / step)
    content, sound = log.path.read_bytes(), read_events(log.path)
    for seed in range(8 * TIMES):
        log.path.write_bytes(damage(content, seed, flips=flips))
        found = read_events(log.path)
        if flips:  # a flipped line break joins two lines
            assert sum(event in found for event in sound) >= 6
        else:
            whole = log.path.read_bytes().count(b"\n")
            assert found in (sound[:whole], sound[: whole + 1])
        log.cut_after(8)
        assert read_events(log.path) == [event for event in found if event.get("step", 0) <= 8]
        log.event("end", steps=8)
        assert read_events(log.path)[-1] == {"event": "end", "steps": 8}
        log.cut_after(3)
        assert all(event.get("step", 0) <= 3 for event in read_events(log.path))


@pytest.mark.parametrize(
    "line", [b"\xff", b"5", b"[]", b'{"event": 3}', b'{"event": "step", "step": "x"}', b"[" * 99999]
)
def test_a_line_that_is_no_event_is_left_out(line, tmp_path):
    log = RunLog(tmp_path)
    log.event("step", step=1)
    log.path.write_bytes(line + b"\n" + log.path.read_bytes())
    log.cut_after(1)
    assert read_events(log.path) == [{"event": "step", "step": 1}]


def test_damaged_splits_are_named_or_change_nothing(tmp_path):
    """Their owner writes them, so they have no checksum: a changed name or form is told, no fold loses a case."""
    data = sound(tmp_path)
    file = data.folder / SPLITS_FILE
    splits = [{"train": ["good"], "val": ["bad"]}, {"train": ["bad"], "val": ["good"]}]
    content = json.dumps(splits).encode()
    for flips in (True, False):
        for seed in range(4 * TIMES):
            file.write_bytes(damage(content, seed, flips=flips))
            told = ""
            try:
                assert make_splits(open_dataset(data.folder)) == splits
            except UserError as error:
                told = str(error)
            assert not told or (SPLITS_FILE in told and "To mend it: " in told)


@pytest.mark.parametrize("flips", [True, False])
def test_a_damaged_label_map_of_the_previous_stage_is_named_and_does_not_count(flips, tmp_path):
    store(tmp_path)
    label = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.int16)
    CaseStore(tmp_path).add_previous_stage("a", label, "lowres")
    assert np.array_equal(CaseStore(tmp_path).read("a").previous_stage(name="lowres"), label)
    for file in (tmp_path / "previous" / "lowres").iterdir():
        content = file.read_bytes()
        for seed in range(TIMES):
            file.write_bytes(damage(content, seed, flips=flips))
            if file.suffix == ".json" and flips and json.loads(content) == _json(file):
                continue
            assert not CaseStore(tmp_path).has_previous_stage("a", "lowres")
            with pytest.raises(UserError, match=file.name):
                CaseStore(tmp_path).read("a").previous_stage(name="lowres")
        file.write_bytes(content)
        assert CaseStore(tmp_path).has_previous_stage("a", "lowres")


def _json(file):
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_flipped_bit_of_a_decoded_copy_is_noticed(kind, tmp_path):
    generator = np.random.default_rng(0)
    cropped = crop(generator.normal(size=(1, *SHAPE)).astype(np.float32), np.ones(SHAPE, np.int16), (1.0, 1.0, 1.0))
    cache = DecodedCache(tmp_path)
    cache.write("a", cropped, "0")
    file = tmp_path / f"a.{kind}.b2nd"
    content = file.read_bytes()
    assert np.array_equal(cache.read("a", "0").image, cropped.image)
    for seed in range(TIMES):
        file.write_bytes(damage(content, seed, flips=True))
        assert cache.read("a", "0") is None
