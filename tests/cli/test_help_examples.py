"""The example in every command's --help works as written, one after the other, in a folder that has what they name.

Only time budgets are cut: nobody waits an hour for a test.
"""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from autoseg.cli import main
from autoseg.cli.app import app

NAME = "Dataset004_Hippocampus"
ORDER = [
    "check", "plan-and-preprocess", "train", "pretrain", "find-best", "predict", "evaluate", "report", "benchmark",
    "export",
    "export-nnunet", "import-nnunet", "list", "new", "check-plugin", "doctor",
]  # fmt: skip


def examples():
    commands = typer.main.get_command(app).commands
    return {
        name: re.findall(r"^ +(autoseg .+)$", command.help or "", re.MULTILINE) for name, command in commands.items()
    }


def test_every_command_has_one():
    found = examples()
    assert set(found) == {*ORDER, "demo"}  # the demo's own test runs it
    assert all(len(lines) >= 1 for lines in found.values())


@pytest.fixture
def place(tiny, repository, tmp_path, monkeypatch):
    """A folder with a workspace that holds a few cases, images to predict and their labels."""
    monkeypatch.chdir(tmp_path)
    for variable in ("AUTOSEG_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copytree(tiny.raw / NAME, tmp_path / "autoseg_workspace" / "raw" / NAME)
    shutil.copy(tiny.raw / NAME / "dataset.json", tmp_path)
    for source, target in (("imagesTr", "images"), ("labelsTr", "labelsTs")):
        (tmp_path / target).mkdir()
        for file in sorted((tiny.raw / NAME / source).iterdir())[:2]:
            shutil.copy(file, tmp_path / target)
    return tmp_path


def run(line):
    arguments = shlex.split(line)[1:]
    if "--time-budget" in arguments:
        arguments[arguments.index("--time-budget") + 1] = "15s"
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_they_work_as_written(place):
    found = examples()
    codes = {}
    for name in ORDER:
        for line in found[name]:
            if name == "export" and importlib.util.find_spec("onnx") is None:
                continue
            if name == "train":
                line += " --set stop_on_collapse=false"
            codes[line] = run(line)
            if name == "find-best":  # "model" in the examples is a model folder, wherever it lies
                shutil.copytree(place / "autoseg_workspace" / "results" / NAME / "model", place / "model")
            if name == "export-nnunet":  # what a training by nnU-Net itself is called
                (exported,) = (place / "nnUNet_results" / NAME).glob("*__3d_fullres")
                exported.rename(exported.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"))
                shutil.rmtree(place / "model")
    assert {line: code for line, code in codes.items() if code != 0} == {}
    assert len(list(Path("segmentations").glob("*.nii.gz"))) == 2
    assert (place / "autoseg_workspace" / "results" / NAME / "report.html").is_file()
