"""What has the name of a file but never ends, or never begins: pipes, devices and sockets are not opened."""

from __future__ import annotations

import stat
from pathlib import Path

from autoseg.errors import UserError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
MEND = "put a regular file in its place, or remove it"


def irregular(path: Path) -> str | None:
    """Return what is said of a pipe, device or socket, links followed; None: it is none of these, or not there."""
    try:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):
        return None
    return None if kind is None else f"this is no regular file ({kind})"


def refuse_irregular(path: Path) -> None:
    """Raise UserError for a pipe, device or socket, which would be read for ever."""
    if what := irregular(path):
        raise UserError(what, where=path, mend=MEND)
