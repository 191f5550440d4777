"""Foreign files run nothing, write nothing outside of the output, and expand to no more than they declare."""

import gzip
import json
import os
import pickle
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from bad_data import nifti_header, png, sound
from model_factory import edit_model, write_model

from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.interop import import_nnunet
from autoseg.interop.checkpoints import read_checkpoint
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


def test_bombs_do_not_explode(tmp_path):
    files = bombs(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in files:
        with pytest.raises(UserError) as caught:
            read_image([path], channels=1)
        assert str(path) in str(caught.value)
        assert caught.value.mend
    assert len(files) == 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_header_does_not_read_files_elsewhere(tmp_path):
    (tmp_path / "secret.raw").write_bytes(bytes(range(64)))
    (tmp_path / "in").mkdir()
    text = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    for name in ("../secret.raw", str(tmp_path / "secret.raw"), "x/../../secret.raw"):
        for ending in (".mhd", ".mha"):
            path = tmp_path / "in" / f"image{ending}"
            path.write_text(text.format(name))
            with pytest.raises(UserError, match="outside of its folder"):
                read_image([path], channels=1)
    (tmp_path / "in" / "beside.raw").write_bytes(bytes(range(64)))
    path.with_suffix(".mhd").write_text(text.format("beside.raw"))
    data = read_image([path.with_suffix(".mhd")], channels=1).data
    np.testing.assert_array_equal(data.ravel(), np.arange(64))


def test_the_check_writes_nothing(tmp_path):
    data = sound(tmp_path)
    data.describe(labels_folder="../../elsewhere")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not check(data.folder, fix_geometry=True, workers=1).ok
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert json.loads(data.file.read_text())["labels_folder"] == "../../elsewhere"
