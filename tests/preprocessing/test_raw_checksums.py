"""Raw cases are known by content: copies are what they were, and nothing is read that has its size and time."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg import fingerprinting, storage
from autoseg.fingerprinting import fingerprint
from autoseg.preprocessing import preprocess, raw_checksums
from autoseg.preprocessing.raw_checksums import CHECKSUMS_FILE, UNREADABLE, RawChecksums
from autoseg.raw import Case, open_dataset
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"


@pytest.fixture
def raw(few_cases) -> Path:
    """Two labelled cases and one without a label map."""
    return few_cases(2)


@pytest.fixture
def done(raw, tmp_path, make_plans):
    """The raw folder and the workspace where it is fingerprinted and preprocessed, and who does that again."""
    place, plans = Workspace.open(tmp_path / "workspace"), make_plans((1.0, 1.0, 1.0), name="full")

    def again(folder: Path = raw):
        dataset = open_dataset(folder)
        fingerprint(dataset, place, workers=1)
        preprocess(dataset, plans, place, ["full"], workers=1)

    again()
    return raw, place.preprocessed_folder(NAME), again


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the raw files that are read for their checksum."""
    names: list[str] = []

    def file_hash(path):
        names.append(path.name)
        return storage.file_hash(path)

    monkeypatch.setattr(raw_checksums, "file_hash", file_hash)
    return names


def made(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (CHECKSUMS_FILE, ".preprocessing.lock")
    }


def test_what_has_its_size_and_time_is_not_read(done, hashed):
    _, folder, again = done
    before = made(folder)
    again()
    assert hashed == []
    assert made(folder) == before


def test_a_copy_elsewhere_is_read_once_and_made_nothing_of(done, hashed, tmp_path):
    raw, folder, again = done
    before = made(folder)
    copy = tmp_path / "elsewhere" / NAME
    shutil.copytree(raw, copy, copy_function=shutil.copyfile)
    shutil.rmtree(raw)
    again(copy)
    files = sorted(path.name for path in copy.rglob("*.nii.gz"))
    assert sorted(hashed) == files
    assert made(folder) == before
    hashed.clear()
    again(copy)
    assert hashed == []


def test_content_of_equal_size_at_another_time_is_another(done):
    raw, folder, again = done
    before = made(folder)
    image = sorted((raw / "imagesTr").iterdir())[0]
    other = sorted((raw / "imagesTr").iterdir())[1]
    content = bytearray(image.read_bytes())
    content[5] ^= 1  # the time within the header of gzip, which says nothing of the image
    image.write_bytes(content)
    os.utime(image, ns=(1, 1))
    again()
    changed = {name for name, time in made(folder).items() if before.get(name) != time}
    stem = image.name.removesuffix("_0000.nii.gz")
    assert "fingerprint.json" in changed
    assert any(stem in name for name in changed)
    assert not any(other.name.removesuffix("_0000.nii.gz") in name for name in changed)


def test_a_damaged_file_of_checksums_is_told_and_made_anew(done, hashed, caplog):
    _, folder, again = done
    before = made(folder)
    file = folder / CHECKSUMS_FILE
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    again()
    assert caplog.text.count("the checksums of the raw files are taken anew: ") == 1
    assert str(file) in caplog.text
    assert len(hashed) == 5
    assert made(folder) == before
    assert json.loads(file.read_text()) == json.loads(whole)


def test_where_checksums_cannot_be_written_they_are_taken_each_time(raw, tmp_path, hashed):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    (place.preprocessed_folder(NAME) / CHECKSUMS_FILE).mkdir(parents=True)
    for _ in range(2):
        checksums = RawChecksums.of(place, dataset)
        found = checksums.identities(dataset.cases)
        checksums.write()
        assert len(found) == 2
    assert len(hashed) == 8


def test_what_cannot_be_read_is_another_case_and_not_kept(raw, tmp_path):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    case = dataset.cases[0]
    checksums = RawChecksums.of(place, dataset)
    whole = checksums.identities([case])[case.id]
    content = case.label.read_bytes()
    case.label.unlink()
    assert checksums.take(case)[-1] == {f"labelsTr/{case.label.name}": UNREADABLE}
    assert checksums.identities([case])[case.id] != whole
    case.label.write_bytes(content)
    assert checksums.identities([case])[case.id] == whole


def test_every_slice_of_a_series_counts(raw, tmp_path):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    series = tmp_path / "series"
    series.mkdir()
    for number in range(3):
        (series / f"{number}.dcm").write_bytes(bytes([number]))
    case = Case("series", (series,), None)
    identities = []
    for content in (b"\2", b"\3", b"\2"):
        (series / "2.dcm").write_bytes(content)
        os.utime(series / "2.dcm", ns=(len(identities), len(identities)))
        identities.append(RawChecksums.of(place, dataset).identities([case])["series"])
    assert identities[0] == identities[2] != identities[1]


def test_slices_of_one_channel_are_not_those_of_another(raw, tmp_path):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    identities = set()
    for first in (("1.dcm",), ("1.dcm", "2.dcm")):
        channels = [tmp_path / str(len(first)) / name for name in "AB"]
        for number in range(1, 4):
            folder = channels[f"{number}.dcm" not in first]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.dcm").write_bytes(bytes([number]))
        case = Case("series", tuple(channels), None)
        identities.add(RawChecksums.of(place, dataset).identities([case])["series"])
    assert len(identities) == 2


def test_hidden_files_of_a_series_do_not_count(raw, tmp_path):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"1")
    case = Case("series", (tmp_path / "series",), None)
    before = RawChecksums.of(place, dataset).identities([case])
    (tmp_path / "series" / ".DS_Store").touch()
    assert RawChecksums.of(place, dataset).identities([case]) == before


def test_restart_reads_all_files_again(done, hashed, make_plans, tmp_path):
    raw, _, _ = done
    place, dataset = Workspace.open(tmp_path / "workspace"), open_dataset(raw)
    fingerprint(dataset, place, workers=1, restart=True)
    assert len(hashed) == 4
    hashed.clear()
    preprocess(dataset, make_plans((1.0, 1.0, 1.0), name="full"), place, ["full"], workers=1, restart=True)
    assert len(hashed) == 5


def test_checksums_survive_an_interruption(raw, tmp_path, hashed, monkeypatch):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    facts, stopped = fingerprinting._facts, []

    def stop(*arguments):
        if len(hashed) == 4 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return facts(*arguments)

    monkeypatch.setattr(fingerprinting, "_facts", stop)
    with pytest.raises(KeyboardInterrupt):
        fingerprint(dataset, place, workers=1)
    hashed.clear()
    fingerprint(dataset, place, workers=1)
    assert len(hashed) == 2  # of the case that was interrupted


def test_files_that_left_the_data_set_are_forgotten(done):
    raw, folder, again = done
    known = json.loads((folder / CHECKSUMS_FILE).read_text())["files"]
    gone = next((raw / "imagesUn").iterdir())
    gone.unlink()
    again()
    left = json.loads((folder / CHECKSUMS_FILE).read_text())["files"]
    assert set(known) - set(left) == {f"imagesUn/{gone.name}"}


def test_what_is_read_to_compare_is_told(done, caplog):
    raw, _, again = done
    for file in raw.rglob("*.nii.gz"):
        os.utime(file, ns=(1, 1))
    with caplog.at_level(logging.INFO):
        again()
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[1] for text in said if "to see whether their content is" in text] == ["4", "1"]


def test_how_files_are_understood_counts(raw, tmp_path):
    dataset, place = open_dataset(raw), Workspace.open(tmp_path / "w")
    other = replace(dataset, channel_names=("MRI", "CT"))
    case = dataset.cases[0]
    one, two = (RawChecksums.of(place, each).identities([case])[case.id] for each in (dataset, other))
    assert one != two
