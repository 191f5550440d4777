"""Fixtures for every room: where the shared real data are, a tiny preprocessed workspace."""

from pathlib import Path

import pytest
from tiny_workspace import scratch, tiny

__all__ = ["repository", "scratch", "shared", "tiny"]

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
