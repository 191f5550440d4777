"""Where a store keeps what.

cases/<id>.image.b2nd, .label.b2nd, .locations.npy    a case
cases/<id>.json                                       its record, written last: a case without record does not exist
index.json                                            the records of all cases, once the store is sealed
previous/<name>/<id>.b2nd                             label maps of a previous stage, for cascades
previous/<name>/<id>.json                             size and checksum of such a label map, written after it
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

INDEX_FILE = "index.json"
CASES = "cases"
IMAGE, LABEL, LOCATIONS = "image.b2nd", "label.b2nd", "locations.npy"


def stem(case: str) -> str:
    """Return the file name, without suffixes, of a case: its id with path separators and the like escaped."""
    return quote(case, safe=" ")


def case_file(folder: Path, case: str, suffix: str) -> Path:
    """Return one file of a case."""
    return folder / CASES / f"{stem(case)}.{suffix}"


def previous_stage_file(folder: Path, name: str, case: str) -> Path:
    """Return where the label map of a previous stage is kept."""
    if not re.fullmatch(r"\w[\w.\-]*", name):
        raise ValueError(f"{name!r} cannot name a previous stage: use letters, digits, '_', '-' and '.'")
    return folder / "previous" / name / f"{stem(case)}.b2nd"
