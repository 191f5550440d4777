"""Names that become parts of paths: those of a file that others made are not trusted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from autoseg.errors import UserError

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
FOLD = re.compile(r"fold_([0-9]+|all)")  # not fold_0_backup, which somebody set aside


def checked_name(name: Any, field: str, where: str | Path) -> str:
    """Return a name that can be a part of a path without leading out of its folder; UserError for another."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(
            f"field {field} is {str(name)[:80]!r}; only letters, digits, '_', '-' and '.' are allowed, no '.' in front",
            where=where,
            mend="do not use the file if you do not know who made it, else change the name",
        )
    return name
