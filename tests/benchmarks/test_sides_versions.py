"""Both sides of a comparison compute with the same torch."""

import sys

import pytest
import torch
from sides.versions import installed, require_alike

THEIRS = {"torch": "2.13.0", "nnunetv2": "2.8.1"}


def test_versions_of_a_python_are_read_without_importing():
    found = installed(sys.executable)
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert "autoseg-engine" in found


def test_what_lies_in_the_current_folder_is_not_installed(tmp_path, monkeypatch):
    folder = tmp_path / "nnunetv2-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 9.9\n")
    monkeypatch.chdir(tmp_path)
    assert installed(sys.executable).get("nnunetv2") != "9.9"


def test_builds_of_the_same_torch_are_alike():
    assert require_alike({"torch": "2.13.0+cpu"}, THEIRS) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [({"torch": "2.12.0"}, THEIRS, "autoseg has torch 2.12.0, nnunetv2 2.13.0"),
     ({"torch": "2.13.0"}, THEIRS | {"nnunetv2": "2.7.0"}, "nnunetv2 is 2.7.0"),
     ({"torch": "2.13.0"}, {"torch": "2.13.0"}, "nnunetv2 is missing")],
)  # fmt: skip
def test_another_torch_or_peer_ends_the_comparison(ours, theirs, told):
    with pytest.raises(SystemExit, match=told):
        require_alike(ours, theirs)
