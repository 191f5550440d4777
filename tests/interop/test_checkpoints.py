"""Checkpoints are pickles: what would run code is refused, and nothing is left behind."""

import os
import pickle
import re

import numpy as np
import pytest
import torch

from autoseg.errors import UserError
from autoseg.interop import import_nnunet
from autoseg.interop.checkpoints import SCALAR, read_checkpoint


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(path, extra, **options):
    content = {"network_weights": {"a": torch.ones(2)}, "init_args": {"configuration": "2d"}, "logging": extra}
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "harmless",
    [np.float32(1.5), [np.float64(2), np.int64(3), np.bool_(True)], {"lr": [0.1]}, None, torch.device("cuda", 1)],
    ids=str,
)
def test_plain_values_and_numpy_numbers_are_read(tmp_path, harmless, zipped):
    path = save(tmp_path / "c.pth", harmless, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path)
    assert content["logging"] == harmless
    assert content["network_weights"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_older_and_newer_numpy(tmp_path, module):
    """numpy 1 and 2 write another name of the module into the pickle; protocol 2 is what torch.save uses."""
    path = save(tmp_path / "a.pth", np.float32(0.5), _use_new_zipfile_serialization=False)
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, path.read_bytes()))
    assert module in path.read_bytes()
    assert read_checkpoint(path)["logging"] == np.float32(0.5)


def hostile(marker):
    command = f"touch {marker}"
    return {
        "system": Call(os.system, command),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "object scalar": Call(SCALAR, np.dtype("O"), pickle.dumps(Call(os.system, command))),
        "object array": np.array([Call(os.system, command)], dtype=object),
        "getattr": Call(getattr, "text", "upper"),
        "torch.load": Call(torch.load, str(marker)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", hostile("x"))
def test_code_is_refused_and_leaves_nothing(tmp_path, kind, zipped, reference):
    marker = tmp_path / "marker"
    source = tmp_path / "model"
    (source / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (source / name).write_bytes((reference / "model" / name).read_bytes())
    checkpoint = source / "fold_0" / "checkpoint_final.pth"
    save(checkpoint, hostile(marker)[kind], _use_new_zipfile_serialization=zipped)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="asks for more than weights and plain values") as caught:
        import_nnunet(source, tmp_path / "new" / "imported")
    assert str(checkpoint) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to trust the file is not passed on
    assert sorted(tmp_path.rglob("*")) == before


def test_it_would_have_run_otherwise(tmp_path):
    marker = tmp_path / "marker"
    path = save(tmp_path / "c.pth", hostile(marker)["system"])
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not a zip file", b"\x80\x02."])
def test_damaged_files(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "c.pth")


def test_truncated_file(tmp_path):
    path = save(tmp_path / "c.pth", None)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)


def test_other_content(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no field network_weights"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"network_weights": {}}, tmp_path / "short.pth")
    with pytest.raises(UserError, match="no field init_args"):
        read_checkpoint(tmp_path / "short.pth")
