"""Exports to a full disk, and into the model folder that they come from: told, with nothing left behind."""

import errno
import shutil
import subprocess
import sys

import pytest
import torch
from model_factory import write_model

from autoseg.errors import UserError
from autoseg.interop import export, export_nnunet, portable

FULL = "the file cannot be written (No space left on device)"
SPACE = "To mend it: free some space, then repeat the command: what is finished is kept"


@pytest.fixture
def full(tmp_path):
    """A function that makes a disk of some KiB."""
    place = tmp_path / "disk"

    def of(kib):
        if shutil.which("mount") is None or sys.platform != "linux":
            pytest.skip("no disk can be mounted here")
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            place.rmdir()
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return place

    yield of
    if place.is_dir():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def need(format):
    for name in portable.FORMATS[format]:
        pytest.importorskip(name)


def test_nnunet_on_a_full_disk(tmp_path, full, autoseg_run):
    model, place = write_model(tmp_path / "model"), full(16)
    done = autoseg_run("export-nnunet", model, "-o", place / "results")
    assert done.code == 2
    assert "checkpoint_final.pth: " + FULL in done.err
    assert SPACE in done.err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("format", portable.FORMATS)
def test_networks_on_a_full_disk(tmp_path, full, autoseg_run, format):
    need(format)
    model, place = write_model(tmp_path / "model"), full(4)
    done = autoseg_run("export", model, "--format", format, "-o", place / "exported")
    assert done.code == 2
    assert "member0_fold_0.onnx: " + FULL in done.err
    assert SPACE in done.err
    assert "cannot be written as ONNX" not in done.err
    assert list(place.iterdir()) == []


def test_openvino_on_a_disk_that_takes_the_onnx_file_only(tmp_path, full):
    need("openvino")
    small = tmp_path / "small.onnx"
    portable.write_onnx(torch.nn.Conv2d(16, 32, 3), torch.zeros(2, 16, 8, 8), small)
    place = full(small.stat().st_size // 1024 + 8)
    shutil.copy(small, place / "network.onnx")
    with pytest.raises(UserError) as caught:
        portable._to_openvino(place / "network")
    assert f"network.bin: {FULL}\n{SPACE}" in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_takes_no_more_is_not_the_networks_fault(tmp_path, monkeypatch, number, wrapped):
    """Nor is the network exported twice."""
    calls = []

    def fail(*_, **__):
        calls.append(1)
        if not wrapped:
            raise OSError(number, "said by the system")
        raise RuntimeError("not written") from OSError(number, "said by the system")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError) as caught:
        portable.write_onnx(torch.nn.Conv2d(1, 1, 1), torch.zeros(2, 1, 4, 4), tmp_path / "a.onnx")
    assert str(caught.value).startswith(f"{tmp_path / 'a.onnx'}: the file cannot be written (said by the system)")
    assert len(calls) == 1


@pytest.mark.parametrize("below", ["", "exported", "members/member0/exported"])
@pytest.mark.parametrize("command", [export, export_nnunet])
def test_the_model_folder_is_no_output_folder(tmp_path, monkeypatch, command, below):
    monkeypatch.setitem(portable.FORMATS, "onnx", ())
    model = write_model(tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    before = sorted(model.rglob("*"))
    for output in (model / below, tmp_path / "link" / below):
        with pytest.raises(UserError, match=r"is the model folder .*, or lies in it\nTo mend it: choose an output"):
            command(model, output)
        assert sorted(model.rglob("*")) == before
