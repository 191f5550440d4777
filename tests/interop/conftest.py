"""nnU-Net models: the one among the shared data, and small ones that nnunetv2 trains where it is installed."""

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoseg.cli.running import run
from autoseg.interop import import_nnunet

NNUNET_SIDE = Path(__file__).with_name("nnunet_side.py")


@pytest.fixture(scope="session")
def reference(nnunet_model):
    return nnunet_model


@pytest.fixture(scope="session")
def hippocampus(reference, tmp_path_factory):
    """Its model folder: 3D, two folds."""
    return import_nnunet(reference / "model", tmp_path_factory.mktemp("imported") / "model")


@pytest.fixture(scope="session")
def hippocampus_images(shared, tmp_path_factory):
    """Three of its test images; the last needs several tiles."""
    folder = tmp_path_factory.mktemp("images")
    for case in ("003", "193", "326"):
        name = f"hippocampus_{case}_0000.nii.gz"
        shutil.copy(shared / "data" / "Dataset004_Hippocampus" / "imagesTs" / name, folder)
    return folder


@pytest.fixture(scope="session")
def nnunetv2(tmp_path_factory):
    """Run a job of nnunet_side.py with a Python that has nnunetv2, named by AUTOSEG_TEST_NNUNET_PYTHON."""
    python = os.environ.get("AUTOSEG_TEST_NNUNET_PYTHON")
    if not python:
        pytest.skip("AUTOSEG_TEST_NNUNET_PYTHON does not name a Python that has nnunetv2")
    if subprocess.run([python, "-c", "import nnunetv2"], capture_output=True).returncode:
        pytest.skip(f"{python} has no nnunetv2")

    def carry_out(job):
        file = tmp_path_factory.mktemp("job") / "job.json"
        file.write_text(json.dumps(job, default=str))
        done = subprocess.run([python, NNUNET_SIDE, file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    return carry_out


@pytest.fixture
def autoseg_run(capsys, monkeypatch):
    """Call `autoseg_run("export", ...)` and get exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    handlers = list(logging.getLogger().handlers)

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    yield call
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers
