"""The run that another one replaces: it lies aside, hidden, until the new one has its first checkpoint in due time.

A failure before that puts it back. What is interrupted or killed leaves it aside, as `.earlier-*/fold_0` beside the run
folders, and the next command decides: the run that it asks for comes back, for any other the replacement goes on. The
checkpoint of a stop request does not count until the run has trained for as long as lies between two others: a run
that may have taken days is worth more than some minutes of the one that replaces it.
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
from autoseg.training.identity import check_same_run, has_learnt
from autoseg.training.log import RUN_FILE, read_run

ASIDE = ".earlier-"  # no leftover that an hour makes worthless: it may hold the only copy
KEEPS_EARLIER = "keeps_earlier_run"  # field of run.json: the run has a checkpoint, and what it replaces may come back
logger = logging.getLogger("autoseg.training")


def is_to_be_replaced(folder: Path, asked: Mapping[str, Any], *, anew: bool) -> bool:
    """Return whether the run of the identity `asked` takes the place of another one; with `anew` of whatever is there.

    Raises UserError, naming the difference, where another run is there and is not to be replaced.
    """
    lying = _waiting(folder)
    if anew:
        if lying is not None:
            _remove_if_there(folder)  # what a command that was killed or stopped left there
        return lying is not None or os.path.lexists(folder)
    if comes_back(folder, asked):
        return False
    check_same_run(folder, asked)
    return lying is not None


def may_come_back(folder: Path) -> Path | None:
    """Return where the run lies that the next command for `folder` may bring back; None where there is none."""
    lying = _waiting(folder)
    if lying is None or (_has_begun(folder) and not has_learnt(lying)):
        return None
    return lying if _is_readable(lying) else None


def comes_back(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Put the run that lies aside back into `folder`, if it is the one `asked` for; returns whether it was."""
    lying = may_come_back(folder)
    if lying is None or not _is_same(lying, asked):
        return False
    _bring_back(folder, lying)
    return True


@contextmanager
def set_aside(folders: Sequence[Path]) -> Iterator[None]:
    """Keep what is in the folders aside; an error puts back each that no new run with a checkpoint has replaced."""
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
            lying = _earlier(folder)
            if lying is None:
                continue
            if goes_on or _has_begun(folder):
                logger.warning(
                    "the run that %s replaces lies aside: %s; its own command, without --restart, brings it back",
                    folder, lying,
                )  # fmt: skip
            else:
                _bring_back(folder, lying)
        raise


def discard_earlier(folder: Path) -> None:
    """Delete what the run in `folder`, which has a checkpoint, has replaced; other folds keep what they replace."""
    for lying in _all_earlier(folder):
        _remove_if_there(lying, beside=folder)
        _drop_empty(lying.parent)


def as_recorded(folder: Path, *, replaced: bool) -> dict[str, bool]:
    """Return what run.json says of a run that lies aside, if there is one; until it is `replaced` it may come back."""
    return {} if _earlier(folder) is None else {KEEPS_EARLIER: not replaced}


def _waiting(folder: Path) -> Path | None:
    """Return where the run lies that the one in `folder` replaces, which is deleted if that has its checkpoint."""
    if _has_begun(folder) and not _keeps_earlier(folder):
        discard_earlier(folder)  # a kill came between
    return _earlier(folder)


def _has_begun(folder: Path) -> bool:
    return (folder / STATE_FILE).is_file()


def _keeps_earlier(folder: Path) -> bool:
    """Return whether what the run in `folder` replaces may come back; where its record is damaged or gone, too."""
    if not (folder / RUN_FILE).is_file() or not _is_readable(folder):
        return True
    return read_run(folder).get(KEEPS_EARLIER) is True


def _is_readable(folder: Path) -> bool:
    """Return whether the record of a run, if there is one, can be read."""
    try:
        return not (folder / RUN_FILE).is_file() or bool(read_run(folder))
    except UserError:
        return False


def _earlier(folder: Path) -> Path | None:
    """Return where the run lies that was put aside for one in `folder`."""
    return next(_all_earlier(folder), None)


def _all_earlier(folder: Path) -> Iterator[Path]:
    """Yield the places where runs lie that were put aside for one in `folder`, links that lead nowhere there, too."""
    places = [group / folder.name for group in folder.parent.glob(f"{ASIDE}*")]
    yield from (place for place in places if os.path.lexists(place))


def _is_same(lying: Path, asked: Mapping[str, Any]) -> bool:
    try:
        check_same_run(lying, asked)
    except UserError:
        return False
    return True


def _bring_back(folder: Path, lying: Path) -> None:
    what = "; the stopped one that was to replace it is gone" if _has_begun(folder) else ""
    _remove_if_there(folder)
    os.replace(lying, folder)
    _drop_empty(lying.parent)
    logger.warning("the earlier run is back where it was%s: %s", what, folder)


def _remove_if_there(folder: Path, *, beside: Path | None = None) -> None:
    """Delete a run, or a link to one; it goes at once, since half of one would pass for something that it is not."""
    if not os.path.lexists(folder):
        return
    doomed = Path(tempfile.mkdtemp(prefix=LEFTOVERS[1], dir=(beside or folder).parent))
    with suppress(FileNotFoundError):  # somebody else was quicker
        os.replace(folder, doomed / folder.name)
    shutil.rmtree(doomed, ignore_errors=True)


def _drop_empty(group: Path) -> None:
    with suppress(OSError):  # others lie in it
        group.rmdir()
