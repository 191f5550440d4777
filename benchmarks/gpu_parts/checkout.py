"""The checkout as it would be installed, and the packages of others that it needs."""

from __future__ import annotations

import importlib
import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {  # what is imported -> what is to be installed
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "scipy": "scipy",
    "pydantic": "pydantic",
    "lightning_fabric": "lightning-fabric (pytorch-lightning brings it, too)",
    "dynamic_network_architectures.architectures.unet": "dynamic-network-architectures",
    "blosc2": "blosc2",
    "safetensors": "safetensors",
    "nibabel": "nibabel",
    "cc3d": "connected-components-3d",
    "edt": "edt",
    "tqdm": "tqdm",
    "skimage.transform": "scikit-image",
}
NOT_REHEARSED = ("triton",)


def missing_packages(*, rehearse: bool = False) -> list[str]:
    """Return the packages that cannot be imported, each with the reason, which may be one that it needs itself."""
    missing = []
    for name, package in PACKAGES.items():
        if rehearse and name in NOT_REHEARSED:
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{package}: {error}")
    return missing


def lay_out(folder: Path, root: Path = ROOT) -> Path:
    """Copy the packages of the checkout to where an installation would have them; returns the folder, for the path.

    Planners, trainers and architectures are parts of `autoseg` by the table `package-dir` of pyproject.toml alone.
    """
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    for package, source in sorted(table.items(), key=lambda item: item[0].count(".")):
        target = folder.joinpath(*package.split("."))
        shutil.copytree(root / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
