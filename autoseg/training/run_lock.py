"""One command at a time in a run folder: two would mix their logs, checkpoints and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from autoseg.errors import UserError
from autoseg.lock import locked


@contextmanager
def alone_in(folders: Iterable[Path]) -> Iterator[None]:
    """Hold the run folders; UserError if another command has one of them.

    The locks lie beside the folders, so that `--restart`, which deletes a folder, does not delete its lock.
    """
    with ExitStack() as held:
        for folder in folders:
            refusal = UserError(
                f"another command is at work in {folder}",
                mend="wait until it has ended, or keep this run beside it with --name NAME",
            )
            held.enter_context(locked(folder.with_name(f".{folder.name}.lock"), refusal))
        yield
