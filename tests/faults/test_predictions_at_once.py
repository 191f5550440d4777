"""Predictions whose images are replaced meanwhile, and two of them into one folder."""

import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from model_factory import write_model
from waiting_prediction import PREDICT

from autoseg import lock
from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.inference import folder as folder_module
from autoseg.inference.alone import LOCK_FILE
from autoseg.inference.records import RECORD_FILE
from autoseg.storage import LEFTOVERS

EXTRAS = {"save_probabilities": True, "uncertainty": True}


def write_image(file, seed, shape=(8, 9, 10), spacing=1.0):
    """Put an image in the place of another one at once, as a copying program does."""
    voxels = np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32)
    new = file.with_name(f".new-{file.name}")
    nib.save(nib.Nifti1Image(voxels, np.diag([spacing] * 3 + [1])), new)
    os.replace(new, file)


def image(place, case):
    return place / "in" / f"{case}_0000.nii.gz"


@pytest.fixture
def place(tmp_path):
    """A folder with the images of three cases, and a model for them."""
    (tmp_path / "in").mkdir()
    for seed, case in enumerate("abc"):
        write_image(image(tmp_path, case), seed)
    write_model(tmp_path / "model")
    return tmp_path


@pytest.fixture
def predictor(place):
    return Predictor.load(place / "model", device="cpu", precision="fp32")


def command(place, *more):
    return [
        *("predict", "-i", str(place / "in"), "-o", str(place / "out"), "-m", str(place / "model")),
        *("--device", "cpu", "--precision", "fp32", *more),
    ]


def before(monkeypatch, owner, name, number, do):
    """Do something just before the call of this number, counted from 0, of a function."""
    original, calls = getattr(owner, name), []

    def doing(*arguments, **options):
        calls.append(1)  # first, since what is done may call it, too
        if len(calls) == number + 1:
            do()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, doing)


def assert_as_fresh(place, predictor, **settings):
    """The output folder holds what an undisturbed prediction of the images as they are now gives."""
    predictor.predict_folder(place / "in", place / "fresh", **settings)
    names = {path.name for path in (place / "fresh").iterdir()}
    found = {path.name for path in (place / "out").iterdir() if not path.name.startswith(LEFTOVERS)}  # of a killed one
    assert found == names
    for name in names - {RECORD_FILE}:
        ours, theirs = (nib.load(place / folder / name) for folder in ("out", "fresh"))
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())


@pytest.mark.parametrize("what", ["voxels", "grid"])
def test_an_image_replaced_after_reading_fails_and_is_predicted_anew(place, predictor, monkeypatch, what):
    shape, spacing = ((8, 9, 10), 1.0) if what == "voxels" else ((11, 9, 8), 1.5)
    with monkeypatch.context() as patch:  # the network has got what was read of b by then
        before(patch, predictor, "predict_prepared", 1, lambda: write_image(image(place, "b"), 9, shape, spacing))
        results = predictor.predict_folder(place / "in", place / "out", **EXTRAS)
    assert [result.case for result in results if result.error is None] == ["a", "c"]
    assert results[1].output is None
    assert f"{image(place, 'b')}: the image changed while it was segmented" in results[1].error
    assert "To mend it: repeat the command when nothing writes to the folder any more" in results[1].error
    assert not list((place / "out").glob("b*"))
    again = predictor.predict_folder(place / "in", place / "out", **EXTRAS)
    assert [(result.error, result.skipped) for result in again] == [(None, True), (None, False), (None, True)]
    assert_as_fresh(place, predictor, **EXTRAS)


def test_an_image_replaced_before_reading_is_simply_the_one_that_is_segmented(place, predictor, monkeypatch):
    before(monkeypatch, folder_module, "_read", 2, lambda: write_image(image(place, "c"), 9))
    assert not [result.error for result in predictor.predict_folder(place / "in", place / "out") if result.error]
    assert all(result.skipped for result in predictor.predict_folder(place / "in", place / "out"))
    assert_as_fresh(place, predictor)


def test_an_image_replaced_while_it_is_read_fails(place, predictor, monkeypatch):
    before(monkeypatch, folder_module, "read_image", 0, lambda: write_image(image(place, "a"), 9))
    errors = [result.error for result in predictor.predict_folder(place / "in", place / "out")]
    assert "the image changed while it was segmented" in errors[0]
    assert errors[1:] == [None, None]


def test_an_image_that_is_gone_after_reading_fails(place, predictor, monkeypatch):
    before(monkeypatch, predictor, "predict_prepared", 1, image(place, "b").unlink)
    results = predictor.predict_folder(place / "in", place / "out")
    assert [result.error is None for result in results] == [True, False, True]
    assert f"{image(place, 'b')}: the image changed while it was segmented" in results[1].error
    assert not list((place / "out").glob("b*"))


def test_the_command_lists_an_image_that_changed_and_ends_with_1(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        before(patch, Predictor, "predict_prepared", 1, lambda: write_image(image(place, "b"), 9))
        assert run(command(place)) == 1
    said = capsys.readouterr()
    assert "2 of 3 case(s) segmented" in said.out
    assert said.err.count("case b failed: ") == 1
    assert run(command(place)) == 0
    assert "3 of 3 case(s) segmented" in capsys.readouterr().out


def test_a_second_prediction_into_a_folder_is_refused_and_changes_nothing(place, predictor, monkeypatch, capsys):
    told = []

    def second():
        told.append(run(command(place, "--no-mirroring")))
        with pytest.raises(UserError, match="another prediction is at work in this folder") as refused:
            predictor.predict_folder(place / "in", place / "out", restart=True)
        assert refused.value.where == str(place / "out")
        assert "choose another output folder" in refused.value.mend

    with monkeypatch.context() as patch:
        before(patch, predictor, "predict_prepared", 1, second)
        results = predictor.predict_folder(place / "in", place / "out")
    assert told == [2]
    said = capsys.readouterr().err
    assert f"{place / 'out'}: another prediction is at work in this folder" in said
    assert "wait until it has ended, or choose another output folder" in said
    assert [result.error for result in results] == [None] * 3
    assert all(result.skipped for result in predictor.predict_folder(place / "in", place / "out"))
    assert_as_fresh(place, predictor)  # no lock stays, either


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_prediction_holds_nothing(place, predictor):
    line = [sys.executable, "-c", PREDICT, *command(place)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "ready\n"
            assert (place / "out" / LOCK_FILE).exists()
            with pytest.raises(UserError, match="another prediction is at work"):
                predictor.predict_folder(place / "in", place / "out")
        finally:
            first.kill()
    assert (place / "out" / LOCK_FILE).exists()
    assert not [result.error for result in predictor.predict_folder(place / "in", place / "out") if result.error]
    assert_as_fresh(place, predictor)


def test_predictions_below_each_other_and_of_one_folder_do_not_meet(place, predictor, monkeypatch):
    nested = []

    def elsewhere():
        nested.extend(predictor.predict_folder(place / "in", place / "out" / "below"))

    with monkeypatch.context() as patch:
        before(patch, predictor, "predict_prepared", 1, elsewhere)
        results = predictor.predict_folder(place / "in", place / "out")
    assert [result.error for result in (*results, *nested)] == [None] * 6


def test_a_folder_in_which_nothing_may_be_written_is_looked_at_all_the_same(place, predictor, monkeypatch):
    predictor.predict_folder(place / "in", place / "out")

    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock, "locked", refused)
    assert all(result.skipped for result in predictor.predict_folder(place / "in", place / "out"))
