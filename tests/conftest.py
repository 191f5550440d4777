"""Fixtures for every room: where the shared real data are, a tiny preprocessed workspace."""

from pathlib import Path

import pytest
from tiny_workspace import scratch, tiny

__all__ = ["nnunet_model", "repository", "scratch", "shared", "tiny"]

ROOT = Path(__file__).resolve().parents[1]


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
