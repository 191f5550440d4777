"""Pipes and devices in place of files are told and never opened: nobody writes into the pipes, so who opens hangs."""

import json
import os
import signal

import pytest
from bad_data import Data, sound
from model_factory import write_model

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.raw import open_dataset, read_image, read_label
from autoseg.storage import file_hash, read_json

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs pipes with names")
PIPE, DEVICE = "this is no regular file (a pipe)", "this is no regular file (a device)"
MEND = "To mend it: put a regular file in its place, or remove it"
SECONDS = 60  # in which a test that hangs in Python fails


@pytest.fixture(autouse=True)
def no_hang():
    def hangs(*_):
        raise TimeoutError("a pipe was opened")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def data(tmp_path) -> Data:
    return sound(tmp_path)


def pipe(file):
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def device(file):
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("make", "says"), [(pipe, PIPE), (device, DEVICE)])
def test_a_prediction_or_reference_is_listed_and_the_others_are_scored(data, make, says, workers, capfd):
    predictions, out = data.place / "predictions", data.place / "out"
    predictions.mkdir()
    for label in data.label.parent.iterdir():
        (predictions / label.name).write_bytes(label.read_bytes())
    make(predictions / data.label.name)
    command = ["evaluate", str(predictions), str(data.label.parent), "--output", str(out), "--workers", str(workers)]
    assert run(command) == 1
    assert f"{predictions / data.label.name}: {says}\n" in (told := capfd.readouterr().err)
    assert MEND in told
    scores = json.loads((out / "summary.json").read_text())
    assert (list(scores["cases"]), list(scores["failed"])) == (["good"], ["bad"])

    (predictions / data.label.name).unlink()
    (predictions / data.label.name).write_bytes(data.label.read_bytes())
    make(data.label)
    assert run(command) == 1
    assert f"{data.label}: {says}\n" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["bad_0000.nii.gz", "zz_0000.nii.gz", "a_0000.nii.gz"])
@pytest.mark.parametrize(("make", "says"), [(pipe, PIPE), (device, DEVICE)])
def test_an_image_to_be_segmented_is_listed_and_the_others_are_segmented(data, name, make, says, capfd):
    images, out = data.image.parent, data.place / "out"
    make(images / name)
    write_model(data.place / "model")
    command = ["predict", "-i", str(images), "-o", str(out), "-m", str(data.place / "model"), "--device", "cpu"]
    assert run([*command, "--json"]) == 1
    said, told = capfd.readouterr()
    results = {result["case"]: result["error"] for result in json.loads(said)}
    case = name.removesuffix("_0000.nii.gz")
    assert set(results) == {"good", "bad", case}
    assert results[case] == f"{images / name}: {says}\n{MEND}"
    assert [other for other in results if results[other] is None] == sorted({"good", "bad"} - {case})
    assert told.count(f"case {case} failed: ") == 1


def test_a_folder_of_nothing_else_and_the_place_itself_are_told(data, capfd):
    write_model(data.place / "model")
    images = data.place / "images"
    images.mkdir()
    pipe(images / "a_0000.nii.gz")
    for place in (images, images / "a_0000.nii.gz"):
        arguments = ["-i", str(place), "-o", str(data.place / "out"), "-m", str(data.place / "model")]
        assert run(["predict", *arguments, "--device", "cpu"]) == 2
        assert f"{images / 'a_0000.nii.gz'}: {PIPE}" in capfd.readouterr().err


@pytest.mark.parametrize(("make", "says"), [(pipe, PIPE), (device, DEVICE)])
@pytest.mark.parametrize("command", ["check", "plan-and-preprocess"])
@pytest.mark.parametrize("name", ["dataset.json", "cases.csv", "texts.json"])
def test_a_description_is_told(data, command, name, make, says, capfd):
    make(data.folder / name)
    options = ["--workspace", str(data.place / "workspace")]
    assert run([command, str(data.folder), *options]) == 2
    told = "".join(capfd.readouterr())
    assert says in told
    assert "no dataset.json" not in told


@pytest.mark.parametrize("file", ["image", "label"])
def test_a_file_of_a_data_set_is_told(data, file, capfd):
    pipe(getattr(data, file))
    assert run(["check", str(data.folder), "--workspace", str(data.place / "workspace")]) == 2
    assert "(a pipe)" in "".join(capfd.readouterr())


def test_lists_that_name_pipes_and_lists_that_are_pipes(data):
    pipe(data.image)
    entry = {"images": ["imagesTr/bad_0000.nii.gz"], "label": "labelsTr/bad.nii.gz"}
    for fields in (
        {"cases": [entry]},
        {"dataset": {"bad": entry}},
        {"training": [{"image": entry["images"][0], **entry}]},
    ):
        data.describe(**fields, numTraining=None)
        with pytest.raises(
            UserError, match=r"bad_0000\.nii\.gz: (field cases\[0\]: )?this is no regular file \(a pipe\)"
        ):
            open_dataset(data.folder)
        data.describe(**dict.fromkeys(fields))
    for name in ("list.csv", "list.json"):
        pipe(data.folder / name)
        with pytest.raises(UserError, match=r"list\..*: this is no regular file \(a pipe\)"):
            open_dataset(data.folder / name)


def test_all_who_read_refuse(data):
    pipe(data.place / "file")
    for read in (read_json, file_hash):
        with pytest.raises(UserError, match=r"this is no regular file \(a pipe\)"):
            read(data.place / "file")
    for name in ("a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png", "a.tif"):
        pipe(data.place / name)
        for read in (read_label, lambda path: read_image([path], channels=1)):
            with pytest.raises(UserError, match=r"this is no regular file \(a pipe\)"):
                read(data.place / name)
    pipe(data.place / "voxels.raw")
    header = "NDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
    (data.place / "a.mhd").write_text(header)
    with pytest.raises(UserError, match=r"voxels\.raw: this is no regular file \(a pipe\)"):
        read_label(data.place / "a.mhd")


def test_a_pipe_among_slices_is_told(data):
    folder = data.place / "series"
    folder.mkdir()
    pipe(folder / "1.dcm")
    with pytest.raises(UserError, match=r"1\.dcm: this is no regular file \(a pipe\)"):
        read_label(folder)


def test_links_to_regular_files_are_files(data, capfd):
    for file in (data.image, data.label, data.file):
        file.rename(data.place / file.name)
        file.symlink_to(data.place / file.name)
    assert run(["check", str(data.folder), "--workspace", str(data.place / "workspace")]) == 0
