"""A case of a prediction folder that cannot be used is listed, and the others are segmented."""

import json

import pytest
from bad_data import Data, sound
from model_factory import write_model

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.inference.records import RECORD_FILE

PAIR = ("_0000.nii.gz", "_0001.nii.gz")


@pytest.fixture
def data(tmp_path) -> Data:
    """A folder of two-channel images, `good` and `bad`, and a model for them."""
    data = sound(tmp_path)
    for file in list(data.image.parent.iterdir()):
        file.with_name(file.name.replace(*PAIR)).write_bytes(file.read_bytes())
    write_model(tmp_path / "model", channels=2)
    return data


def channel(data: Data, number: int):
    return data.image.with_name(f"bad_{number:04d}.nii.gz")


def rename(data: Data, name: str) -> None:
    for number in range(2):
        channel(data, number).rename(data.image.with_name(f"{name}_{number:04d}.nii.gz"))


FAULTS = {
    "no first channel": (lambda d: channel(d, 0).unlink(), "bad", "channel file bad_0000.nii.gz is missing"),
    "no second channel": (lambda d: channel(d, 1).unlink(), "bad", "1 file(s) with 1 channel(s) in all"),
    "one channel too many": (
        lambda d: channel(d, 2).write_bytes(b""),
        "bad",
        "the file is channel 2, but 2 channel(s) are declared",
    ),
    "an impossible name": (lambda d: rename(d, "b..d"), "b..d", "the case name 'b..d' cannot become a file name"),
    "letters that cannot be shown": (lambda d: rename(d, "b\x1bd"), "b\\x1bd", "'b\\x1bd' cannot become a file name"),
    "a name without a number": (
        lambda d: (channel(d, 0).rename(d.image.with_name("bad.nii.gz")), channel(d, 1).unlink()),
        "bad",
        "the file name is not CASE_0000.nii.gz",
    ),
    "a link to nothing": (
        lambda d: (channel(d, 1).unlink(), channel(d, 1).symlink_to("nowhere")),
        "bad",
        "the link leads to no file",
    ),
    "a folder with the name of a file": (
        lambda d: (channel(d, 1).unlink(), channel(d, 1).mkdir()),
        "bad",
        "this is a folder with the name of a file",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_unusable_case_is_listed_and_the_others_are_segmented(data, name, capfd):
    spoil, case, says = FAULTS[name]
    spoil(data)
    images, out, model = data.image.parent, data.place / "out", data.place / "model"
    code = run(["predict", "-i", str(images), "-o", str(out), "-m", str(model), "--device", "cpu", "--json"])
    said, told = capfd.readouterr()
    assert code == 1, told
    results = {result["case"]: result["error"] for result in json.loads(said)}
    assert (set(results), results["good"]) == ({"good", case}, None)
    assert says in results[case]
    assert "To mend it: " in results[case]
    assert told.count(f"case {case} failed: ") == 1
    assert {file.name for file in out.iterdir()} == {"good.nii.gz", RECORD_FILE}


def test_in_python_too_and_the_finished_cases_stay_finished(data, caplog):
    channel(data, 0).unlink()
    predictor = Predictor.load(data.place / "model", device="cpu")
    for skipped in (False, True):
        good, bad = predictor.predict_folder(data.image.parent, data.place / "out")
        assert (good.case, good.error, good.skipped) == ("good", None, skipped)
        assert (bad.case, bad.output, bad.skipped) == ("bad", None, False)
        assert "channel file bad_0000.nii.gz is missing" in bad.error


def test_a_folder_without_a_usable_case_is_refused(data, capfd):
    for name in ("good", "bad"):
        data.image.with_name(f"{name}_0002.nii.gz").touch()
    with pytest.raises(UserError, match=r"bad_0002\.nii\.gz: the file is channel 2, but 2 channel\(s\) are declared"):
        Predictor.load(data.place / "model", device="cpu").predict_folder(data.image.parent, data.place / "out")
    where = ["-i", str(data.image.parent), "-o", str(data.place / "out"), "-m", str(data.place / "model")]
    assert run(["predict", *where]) == 2
    assert not (data.place / "out").exists()
