"""Starting a process without waiting for ever: a fork server that hangs while it imports answers nobody."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

from autoseg.errors import UserError
from autoseg.worker_life import interrupts_kept_from_children, modules_of_this_process

MEND = "see whether the disk of the installation answers, then repeat the command"


def not_started(stage: str, seconds: float) -> UserError:
    """Return what is said of processes that give no sign of life."""
    return UserError(f"the worker processes of stage {stage} did not start within {seconds:g} s", mend=MEND)


def start_process(process: Any, stage: str, seconds: float) -> None:
    """Start a process; raises UserError if that takes longer than some `seconds`, or fails."""
    errors: list[BaseException] = []

    def start() -> None:
        try:
            with modules_of_this_process(), interrupts_kept_from_children():
                process.start()
        except BaseException as error:  # for the thread that waits
            errors.append(error)

    thread = threading.Thread(target=start, name="autoseg-start", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _end_fork_server()
        raise not_started(stage, seconds)
    if errors and isinstance(errors[0], (EOFError, OSError)):  # the fork server died, or the system has no room
        what = f"the worker processes of stage {stage} cannot start ({type(errors[0]).__name__}: {errors[0]})"
        raise UserError(what, mend=MEND) from errors[0]
    if errors:
        raise errors[0]


def _end_fork_server() -> None:
    """Kill the fork server, which has imported nothing yet and serves nobody: else it would outlive the command."""
    from multiprocessing import forkserver

    with suppress(AttributeError, OSError, TypeError):
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        forkserver._forkserver._stop()
