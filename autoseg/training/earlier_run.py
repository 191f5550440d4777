"""The run that another one replaces: it lies aside, hidden, until the new one has its first checkpoint.

A failure before that puts it back. What is interrupted or killed leaves it aside, as `.earlier-*/fold_0` beside the run
folders, and the next command decides: the run that it asks for comes back, for any other the replacement goes on.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autoseg.errors import Interrupted, UserError
from autoseg.storage import LEFTOVERS, remove_leftovers
from autoseg.training.checkpoint import STATE_FILE
from autoseg.training.identity import check_same_run

ASIDE = ".earlier-"  # no leftover that an hour makes worthless: it may hold the only copy
logger = logging.getLogger("autoseg.training")


def is_to_be_replaced(folder: Path, asked: Mapping[str, Any], *, anew: bool) -> bool:
    """Return whether the run of the identity `asked` takes the place of another one; with `anew` of whatever is there.

    Raises UserError, naming the difference, where another run is there and is not to be replaced.
    """
    if _has_begun(folder):
        discard_earlier(folder)
    lying = _earlier(folder)
    if anew:
        if lying is not None:
            _delete(folder)  # what a killed command left there
        return lying is not None or os.path.lexists(folder)
    if lying is not None and _is_same(lying, asked):
        _put_back(folder)
        lying = None
    check_same_run(folder, asked)
    return lying is not None


@contextmanager
def set_aside(folders: Sequence[Path]) -> Iterator[None]:
    """Keep what is in the folders aside; an error puts back each that no new run with a checkpoint has replaced.

    The first checkpoint of any of the new runs discards them all, since one command asked for that.
    """
    try:
        for parent in {folder.parent for folder in folders}:
            remove_leftovers(parent)
            group = Path(tempfile.mkdtemp(prefix=ASIDE, dir=parent))
            for folder in (folder for folder in folders if folder.parent == parent):
                lying = _earlier(folder)
                os.replace(lying or folder, group / folder.name)
                if lying is not None:
                    _drop_empty(lying.parent)
        yield
    except BaseException as error:
        goes_on = isinstance(error, Interrupted) or not isinstance(error, Exception)
        for folder in folders:
            if not goes_on:
                _put_back(folder)
            elif (lying := _earlier(folder)) is not None:
                logger.warning("the run that %s replaces lies aside until the next command: %s", folder, lying)
        raise


def discard_earlier(folder: Path) -> None:
    """Delete what the run in `folder`, which has a checkpoint, has replaced, and all that was put aside with it."""
    for lying in folder.parent.glob(f"{ASIDE}*/{folder.name}"):
        group = lying.parent
        doomed = group.with_name(LEFTOVERS[1] + group.name.removeprefix(ASIDE))
        with suppress(FileNotFoundError):  # somebody else was quicker
            os.replace(group, doomed)  # at once: half a run must not come back
            shutil.rmtree(doomed, ignore_errors=True)


def _has_begun(folder: Path) -> bool:
    return (folder / STATE_FILE).is_file()


def _earlier(folder: Path) -> Path | None:
    """Return where the run lies that was put aside for one in `folder`."""
    return next(folder.parent.glob(f"{ASIDE}*/{folder.name}"), None)


def _is_same(lying: Path, asked: Mapping[str, Any]) -> bool:
    try:
        check_same_run(lying, asked)
    except UserError:
        return False
    return True


def _put_back(folder: Path) -> None:
    lying = _earlier(folder)
    if lying is None or _has_begun(folder):
        return
    _delete(folder)
    os.replace(lying, folder)
    _drop_empty(lying.parent)
    logger.warning("the earlier run is back where it was: %s", folder)


def _delete(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def _drop_empty(group: Path) -> None:
    with suppress(OSError):  # others lie in it
        group.rmdir()
