"""Every folder of code is installed: a wheel has what the working tree has."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def packages_on_disk() -> set[str]:
    """Return the dotted names of all folders with Python files."""
    found = {file.parent.relative_to(ROOT) for file in (ROOT / "autoseg").rglob("*.py")}
    for family in ("planners", "trainers", "architectures"):
        found |= {Path("autoseg") / file.parent.relative_to(ROOT) for file in (ROOT / family).rglob("*.py")}
    return {".".join(folder.parts) for folder in found}


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="no source tree")
def test_every_folder_of_code_is_a_declared_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(packages_on_disk())
