"""Running commands inside the test process, as `autoseg ...` would."""

import logging
from dataclasses import dataclass

import pytest

from autoseg.cli.running import run


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def autoseg(capsys, monkeypatch, tmp_path):
    """Call `autoseg("check", "4")` and get exit code, stdout and stderr; works in an empty folder."""
    for name in ("AUTOSEG_WORKSPACE", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    handlers = list(logging.getLogger().handlers)
    yield call
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers
