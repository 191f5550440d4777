"""Finds the plug-ins meant by a reference and runs the checks of their kind."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from autoseg import plugins
from autoseg.conformance.findings import Finding
from autoseg.errors import UserError
from autoseg.plugins import KINDS, Found

CHECKS = {kind: f"autoseg.conformance.{kind}" for kind in KINDS}


def find_plugins(reference: str, workspace: Path | None = None) -> list[Found]:
    """Return the plug-ins meant by `file.py` (all of them), `file.py:name`, or a name of any kind."""
    if reference.endswith(".py"):
        path = Path(reference)
        if not path.is_file():
            raise UserError("the plug-in file does not exist", where=path)
        found = [entry for kind in KINDS for entry in plugins.in_file(kind, path)]
        if not found:
            plugins.find("trainer", reference)  # tells a syntax error
        return found
    found, reasons = [], []
    for kind in KINDS:
        try:
            found.append(plugins.find(kind, reference, workspace))
        except UserError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return found


def check_plugin(found: Found, workspace: Path | None = None) -> Iterator[Finding]:
    """Yield the findings for one plug-in, one by one."""
    plugin = plugins.load(found.kind, found.reference, workspace)
    yield from importlib.import_module(CHECKS[found.kind]).check(found, plugin)
