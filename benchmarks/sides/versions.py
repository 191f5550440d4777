"""Versions of what is compared; both sides must compute with the same torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("autoseg-engine", "nnunetv2", "torch", "numpy", "scipy", "blosc2", "batchgeneratorsv2", "SimpleITK")
PEER = "2.8.1"
PROGRAM = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def of(autoseg: str, nnunet: str | None) -> dict[str, Any]:
    """Return the versions of both Pythons and the commit; exits where their torch differs or the peer is another."""
    found: dict[str, Any] = {"autoseg": installed(autoseg), "commit": _commit()}
    if nnunet is not None:
        found["nnunet"] = installed(nnunet)
        require_alike(found["autoseg"], found["nnunet"])
    return found


def require_alike(ours: dict[str, str], theirs: dict[str, str]) -> None:
    """Exit unless both sides have the same torch, whatever it was built for, and the peer is the one compared with."""
    here, there = (side.get("torch", "none").partition("+")[0] for side in (ours, theirs))
    if here != there:
        raise SystemExit(f"autoseg has torch {here}, nnunetv2 {there}: install the same on both sides")
    if theirs.get("nnunetv2") != PEER:
        raise SystemExit(
            f"nnunetv2 is {theirs.get('nnunetv2', 'missing')}, the figures are of {PEER}: install this one"
        )


def installed(python: str) -> dict[str, str]:
    """Return the versions of the packages that a Python has, whatever lies in the current folder."""
    return json.loads(subprocess.run([python, "-I", "-c", PROGRAM, *PACKAGES], check=True, capture_output=True).stdout)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
