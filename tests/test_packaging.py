"""Every folder of code is installed: a wheel has what the working tree has."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

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


# What was fixed last among the advisories that were found, by hand, 2026-11-21; see benchmarks/RESULTS.md.
FIXED = {
    "torch": "2.10.0", "monai": "1.6.1", "onnx": "1.22.0", "tqdm": "4.66.3", "pytest": "9.0.3", "setuptools": "83.0.0",
    "numpy": "1.19.1", "scipy": "1.10.0", "pydantic": "2.4.0",
}  # fmt: skip


def lowest_versions(*more: str) -> dict[str, Version]:
    """Return the lowest version that every requirement allows; requirements without one are an error."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(), more]
    requirements = [Requirement(text) for group in groups for text in group]
    lowest = {
        requirement.name: Version(bound.version)
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator in (">=", "==")
    }
    assert not [str(each) for each in requirements if each.name not in lowest and not each.extras], "no lowest version"
    return lowest


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="no source tree")
def test_no_allowed_version_has_an_advisory_that_is_known():
    with (ROOT / "pyproject.toml").open("rb") as file:
        lowest = lowest_versions(*tomllib.load(file)["build-system"]["requires"])
    assert lowest.keys() >= FIXED.keys()
    assert {name: str(lowest[name]) for name, fixed in FIXED.items() if lowest[name] < Version(fixed)} == {}


@pytest.mark.skipif(not (ROOT / ".ci" / "lowest").is_file(), reason="no source tree")
def test_the_run_with_the_lowest_versions_has_them_all():
    command = ["bash", str(ROOT / ".ci" / "lowest"), "--pins"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    pins = {name: Version(version) for name, version in (line.split("==") for line in listed)}
    tools = {"ruff", "pre-commit"}  # of who works on autoseg
    assert pins == {name: version for name, version in lowest_versions().items() if name not in tools}
