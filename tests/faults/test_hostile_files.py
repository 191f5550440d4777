"""Foreign files run nothing, write nothing outside of the output, and expand to no more than they declare."""

import gzip
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bad_data import nifti_header, png, sound
from model_factory import edit_model, write_model

from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.interop import import_nnunet
from autoseg.interop.checkpoints import read_checkpoint
from autoseg.interop.moving_plans import _plans_of_members
from autoseg.model_folder import read_member_plans, read_model
from autoseg.raw import check, open_dataset, read_image
from autoseg.reporting.markup import text
from autoseg.training.checkpoint import Progress, State, load_state

HTML = '<img src=x onerror="alert(1)">&amp;'


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def marker(tmp_path):
    """A file that hostile code would make; the test fails if it is there at its end."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def test_pickled_code_in_a_checkpoint_of_nnunet(tmp_path, marker):
    content = {"network_weights": {}, "init_args": {}, "x": Call(os.system, f"touch {marker}")}
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match="asks for more than weights"):
        read_checkpoint(tmp_path / "c.pth")


def test_pickled_code_in_a_checkpoint_of_ours(tmp_path, marker):
    """Even behind a right checksum, which anyone can compute."""
    import hashlib
    import io

    from autoseg.training import checkpoint

    buffer = io.BytesIO()
    torch.save({"modules": {}, "optimizers": {}, "progress": {}, "extra": Call(os.system, f"touch {marker}")}, buffer)
    body = buffer.getvalue()
    (tmp_path / "state.pt").write_bytes(checkpoint._MAGIC + hashlib.sha256(body).digest() + body)
    with pytest.raises(UserError, match=r"state\.pt"):
        load_state(tmp_path, State({}, {}, Progress()))


@pytest.mark.parametrize("what", ["pickle", "zip", "text"])
def test_weights_that_are_no_safetensors(tmp_path, marker, what):
    model = write_model(tmp_path / "model")
    weights = next(model.rglob("fold_0.safetensors"))
    hostile = pickle.dumps(Call(os.system, f"touch {marker}"))
    if what == "zip":
        torch.save(Call(os.system, f"touch {marker}"), weights)
    else:
        weights.write_bytes(hostile if what == "pickle" else b"import os")
    edit_model(model)  # the checksums fit
    with pytest.raises(UserError, match=r"fold_0\.safetensors"):
        Predictor.load(model, device="cpu")


def test_plugin_source_of_a_foreign_model_runs_only_if_trusted(tmp_path, marker):
    model = write_model(tmp_path / "model")
    (model / "members" / "member0" / "network.py").write_text(f"open({str(marker)!r}, 'w')\n")
    edit_model(model, architecture="foreign", plugin_source="members/member0/network.py")
    with pytest.raises(UserError, match="--trust-plugins"):
        Predictor.load(model, device="cpu")


def test_an_architecture_named_by_a_foreign_model_is_an_installed_one(tmp_path, marker, monkeypatch):
    """The folder of the model may be the one that the user stands in."""
    model = write_model(tmp_path / "model")
    (model / "architectures").mkdir()
    evil = f"open({str(marker)!r}, 'w')\n@register.architecture('evil')\nclass Evil(Architecture):\n    pass\n"
    (model / "architectures" / "evil.py").write_text(f"from autoseg import Architecture, register\n{evil}")
    monkeypatch.chdir(model)
    edit_model(model, architecture="evil")
    for read in (lambda: Predictor.load(model, device="cpu"), lambda: _plans_of_members(model, read_model(model))):
        with pytest.raises(UserError, match="no architecture called 'evil'"):
            read()


@pytest.mark.parametrize("name", ["evil", "evil.py", "architectures/evil.py:evil"])
def test_plans_taken_from_a_foreign_model_name_installed_architectures(tmp_path, marker, monkeypatch, name):
    """`plan-and-preprocess --plans-from` would hand the name on to training, which looks into all folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "architectures").mkdir()
    for file in ("evil.py", "architectures/evil.py"):
        (tmp_path / file).write_text(f"open({str(marker)!r}, 'w')\n")
    model = write_model(tmp_path / "model")
    plans = read_member_plans(model, read_model(model).members[0])
    evil = {key: each.model_copy(update={"architecture": name}) for key, each in plans.configurations.items()}
    plans = plans.model_copy(update={"configurations": evil})
    monkeypatch.setattr("autoseg.interop.moving_plans.read_member_plans", lambda *_: plans)
    with pytest.raises(UserError, match=f"no architecture called '{name}'"):
        _plans_of_members(model, read_model(model))


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "a/../../w", "C:\\w", "..\\w", ""])
def test_paths_of_a_model_folder_stay_inside(tmp_path, name):
    model = write_model(tmp_path / "model")
    for change in ({"folds": {"0": name}}, {"plans_file": name}, {"plugin_source": name}):
        edit_model(model, **change)
        with pytest.raises(UserError, match="points outside"):
            Predictor.load(model, device="cpu")
        edit_model(write_model(tmp_path / "model"))


@pytest.mark.parametrize("name", ["../../evil.json", "/tmp/evil/plans.json", "a\\..\\plans.json", "C:/plans.json"])
def test_an_archive_writes_nothing_outside(tmp_path, name):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    file = tmp_path / "deep" / "er" / "m.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="points outside"):
        import_nnunet(file, tmp_path / "deep" / "er" / "model")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "a/../../escaped", "..", "a\0b", "a\\b"])
def test_names_in_dataset_json_are_no_paths(tmp_path, name):
    data = sound(tmp_path)
    files = {"image": "imagesTr/bad_0000.nii.gz", "label": "labelsTr/bad.nii.gz"}
    data.describe(cases=[{"case": name, **files}])
    with pytest.raises(UserError, match="cannot become a file name"):
        open_dataset(data.folder)
    data.describe(cases=None, labels_folder=name)
    with pytest.raises(UserError, match="labels_folder"):
        open_dataset(data.folder)


def test_case_names_with_html_are_text_in_the_report():
    assert "<" not in text(HTML)
    assert "&lt;img" in text(HTML)


def bombs(folder):
    """Small files that ask for, or expand to, a multiple of a gigabyte."""
    zeros = zlib.compressobj(9, wbits=31)
    packed = zeros.compress(nifti_header((4, 4, 4)))
    packed += b"".join(zeros.compress(bytes(2**24)) for _ in range(32)) + zeros.flush()  # 512 MiB
    (folder / "gzip.nii.gz").write_bytes(packed)
    (folder / "header.nii.gz").write_bytes(gzip.compress(nifti_header((30000, 30000, 30000))))
    (folder / "counting.nii").write_bytes(nifti_header((2**40, 2**40, 2**40), second=True))
    (folder / "picture.png").write_bytes(png(40000, 40000))
    start, rest = png(4, 4)[:33], png(4, 4)[33:]
    (folder / "chunk.png").write_bytes(start + struct.pack(">I4s", 2**31 - 1, b"sCAL") + rest)
    meta = b"ObjectType = Image\nNDims = 3\nDimSize = 20000 20000 20000\nElementType = MET_FLOAT\n"
    packed = meta + b"CompressedData = True\nCompressedDataSize = 9\nElementDataFile = LOCAL\n" + bytes(9)
    (folder / "meta.mha").write_bytes(packed)
    (folder / "raw.mha").write_bytes(meta + b"ElementDataFile = LOCAL\n" + bytes(9))
    head = "NRRD0004\ntype: float\ndimension: 3\nsizes: 20000 20000 20000\nendian: little\nencoding: {}\n\n"
    (folder / "gzip.nrrd").write_bytes(head.format("gzip").encode() + gzip.compress(bytes(99)))
    (folder / "raw.nrrd").write_bytes(head.format("raw").encode() + bytes(99))
    (folder / "picture.bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 40000, 40000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    return sorted(path for path in folder.iterdir() if path.is_file())


def high_water_mark():
    """Return the most memory that this process has had since the mark was taken back, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.skipif(sys.platform != "linux", reason="takes the high-water mark back")
def test_bombs_do_not_explode(tmp_path):
    files = bombs(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")  # whatever a test before has had
    before = high_water_mark()
    for path in files:
        with pytest.raises(UserError) as caught:
            read_image([path], channels=1)
        assert str(path) in str(caught.value)
        assert caught.value.mend
    assert len(files) == 10
    assert high_water_mark() - before < 200 * 1024


def crop(path, target):
    """Write a part of a label map, which lies in the same space on another grid, as `target`."""
    target.parent.mkdir(exist_ok=True)
    part = nibabel.load(path).slicer[1:, 1:]
    nibabel.Nifti1Image(np.asarray(part.dataobj).copy(), part.affine).to_filename(target)


BAD = {"image": "imagesTr/bad_0000.nii.gz", "label": "../other/bad.nii.gz"}


def link_label(data):
    data.label.unlink()
    data.label.symlink_to("../../other/bad.nii.gz")


def link_labels(data):
    shutil.copy(data.label.with_name("good.nii.gz"), data.place / "other")
    shutil.rmtree(data.label.parent)
    data.label.parent.symlink_to("../other")


def link_originals(data):
    shutil.copy(data.place / "other" / "bad.nii.gz", data.label)
    (data.folder / "labelsTr_original").symlink_to("../other/elsewhere")


def list_in_csv(data):
    (data.folder / "list.csv").write_text(f"case,image,label\nbad,{BAD['image']},{BAD['label']}\n")
    data.describe(cases="list.csv")


def other_folder(data):
    """A dataset.json that says that the data set is elsewhere, where one is."""
    shutil.copytree(data.folder, data.place / "theirs")
    shutil.copy(data.place / "other" / "bad.nii.gz", data.place / "theirs" / "labelsTr")
    data.describe(folder="../theirs")


OUTSIDE = {
    "a list of pairs": lambda d: d.describe(training=[BAD]),
    "an absolute path": lambda d: d.describe(training=[BAD | {"label": str(d.place / "other" / "bad.nii.gz")}]),
    "a list of test pairs": lambda d: d.describe(training=[], test=[BAD]),
    "named cases": lambda d: d.describe(dataset={"bad": {"images": [BAD["image"]], "label": BAD["label"]}}),
    "a case list": lambda d: d.describe(cases=[{"case": "bad", **BAD}]),
    "a table": list_in_csv,
    "another folder": other_folder,
    "a linked label map": link_label,
    "a linked folder of label maps": link_labels,
    "a linked folder of originals": link_originals,
}


@pytest.mark.parametrize("way", OUTSIDE)
def test_fix_geometry_writes_nothing_outside(tmp_path, way):
    data = sound(tmp_path)
    crop(data.label, tmp_path / "other" / "bad.nii.gz")
    OUTSIDE[way](data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    report = check(data.folder, fix_geometry=True, workers=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert any(problem.field == "geometry" and "lies outside" in problem.message for problem in report.errors)


def test_fix_geometry_keeps_the_original_inside(tmp_path):
    data = sound(tmp_path)
    crop(data.label, data.folder / "bad.nii.gz")
    data.describe(cases=[{"case": "bad", **BAD, "label": "bad.nii.gz"}])
    original = (data.folder / "bad.nii.gz").read_bytes()
    assert check(data.folder, fix_geometry=True, workers=1).ok
    assert (data.folder / "labels_original" / "bad.nii.gz").read_bytes() == original
    assert (data.folder / "bad.nii.gz").read_bytes() != original
    assert list(tmp_path.iterdir()) == [data.folder]
