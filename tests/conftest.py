"""Fixtures for every room: where the shared real data are, a tiny preprocessed workspace."""

import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores: one thread each, before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from tiny_workspace import scratch, tiny

__all__ = ["nnunet_model", "repository", "scratch", "shared", "tiny"]

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("autoseg", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("autoseg")

# A shell that starts the tests in the background leaves Ctrl-C ignored, in their children, too; some test it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the shared real data sets are not beside the repository")
    return folder


@pytest.fixture(scope="session")
def nnunet_model(shared) -> Path:
    """The folder of a model that nnunetv2 trained, with its own predictions."""
    folder = shared / "models" / "nnunet_hippocampus"
    if not folder.is_dir():
        pytest.skip("the model trained by nnunetv2 is not among the shared data")
    return folder
