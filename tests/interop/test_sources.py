"""Zip files and folders of nnU-Net's results: what is found, and what is not extracted."""

import stat
import zipfile

import pytest

from autoseg.errors import UserError
from autoseg.interop import import_nnunet, sources
from autoseg.interop.sources import find_experiments

NAME = "Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres"


def write_zip(path, reference, *, extra=()):
    """Write the reference model as nnU-Net exports it, with further (name or ZipInfo, content) entries."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth"):
            archive.write(reference / "model" / name, f"{NAME}/{name}")
        for name, content in extra:
            archive.writestr(name, content)
    return path


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_zip_file(reference, hippocampus, tmp_path):
    file = write_zip(tmp_path / "model.zip", reference, extra=[(f"{NAME}/fold_0/progress.png", b"x")])
    model = import_nnunet(file, tmp_path / "model")
    weights = "members/3d_fullres/fold_0.safetensors"
    assert (model / weights).read_bytes() == (hippocampus / weights).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.zip"]


def test_only_what_is_needed_is_extracted(reference, tmp_path):
    file = write_zip(tmp_path / "m.zip", reference, extra=[("evil.py", b"x"), (f"{NAME}/fold_0/debug.json", b"{}")])
    (tmp_path / "out").mkdir()
    sources.extract(file, tmp_path / "out", "checkpoint_final.pth")
    found = sorted(path.relative_to(tmp_path / "out" / NAME) for path in tmp_path.joinpath("out").rglob("*.*"))
    assert list(map(str, found)) == ["dataset.json", "fold_0/checkpoint_final.pth", "plans.json"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../plans.json", "points outside"),
        (f"{NAME}/../../../../etc/plans.json", "points outside"),
        ("/tmp/plans.json", "points outside"),
        ("C:/plans.json", "points outside"),
        ("..\\plans.json", "points outside"),
        (link("x/fold_0/checkpoint_final.pth"), "is a link"),
        (f"{NAME}/plans.json", "appears twice"),
    ],
    ids=["parent", "deep parent", "absolute", "drive", "backslash", "link", "twice"],
)
def test_entries_that_must_not_be_extracted(reference, tmp_path, entry, message):
    file = write_zip(tmp_path / "m.zip", reference, extra=[(entry, b"{}")])
    with pytest.raises(UserError, match=message):
        import_nnunet(file, tmp_path / "deep" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["m.zip"]


def test_bombs(reference, tmp_path, monkeypatch):
    file = write_zip(tmp_path / "m.zip", reference, extra=[("x/fold_1/checkpoint_final.pth", bytes(3_000_000))])
    monkeypatch.setattr(sources, "LARGEST_ZIP", 3_000_000)
    with pytest.raises(UserError, match="GiB, at most"):
        import_nnunet(file, tmp_path / "model")
    monkeypatch.setattr(sources, "LARGEST_JSON", 100)
    with pytest.raises(UserError, match="too large"):
        import_nnunet(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_entry_that_lies_about_its_size(reference, tmp_path):
    """The directory of the archive says fewer bytes than the entry unpacks to."""
    file = write_zip(tmp_path / "m.zip", reference, extra=[("x/postprocessing.json", b" " * 100_000)])
    content = bytearray(file.read_bytes())
    position = content.rindex(b"x/postprocessing.json") - 46  # its central directory header
    assert content[position : position + 4] == b"PK\x01\x02"
    content[position + 24 : position + 28] = (10).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(UserError):
        import_nnunet(file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_not_a_model(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        import_nnunet(tmp_path / "nothing", tmp_path / "model")
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(UserError, match="neither a folder nor a zip file"):
        import_nnunet(tmp_path / "text.zip", tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no trained model of nnU-Net v2"):
        import_nnunet(tmp_path / "empty", tmp_path / "model")


def test_output_is_not_overwritten(reference, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something already"):
        import_nnunet(reference / "model", tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "mine"


def test_folders_are_found_from_above(reference, tmp_path):
    folder = tmp_path / "results" / NAME
    (folder / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        (folder / name).write_bytes((reference / "model" / name).read_bytes())
    for source in (tmp_path, tmp_path / "results", folder.parent, folder):
        assert [found.folder for found in find_experiments(source, "checkpoint_final.pth")] == [folder]


def test_a_zip_file_without_a_model_is_named_itself(tmp_path):
    file = tmp_path / "empty.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("fold_0/checkpoint_final.pth", b"x")
    with pytest.raises(UserError, match=r"empty\.zip: no trained model"):
        import_nnunet(file, tmp_path / "model")
