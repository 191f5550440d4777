"""A workspace whose results may be spoilt."""

from pathlib import Path

import pytest


@pytest.fixture
def place(tiny, tmp_path) -> Path:
    """A workspace folder with the raw and preprocessed data of the tiny one, and results of its own."""
    root = tmp_path / "work"
    root.mkdir()
    (root / "raw").symlink_to(tiny.raw)
    (root / "preprocessed").symlink_to(tiny.preprocessed)
    return root
