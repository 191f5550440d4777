"""`name=value` texts of the command line whose types are not known beforehand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from autoseg.training.settings import parse_assignments


def parse_values(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `["size=L", "heads=[3, 6]"]` into a dict; what reads as JSON is taken as that, else as text."""
    return {
        name: _parse(text) for name, text in parse_assignments(list(assignments), option="--network-option").items()
    }


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
