"""From arguments to an exit code: errors become one message on stderr, and logging is set up (here only)."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import typer

from autoseg.cli.interrupts import INTERRUPTED, interrupted_at_once
from autoseg.errors import AutosegError, CaseError, CasesFailed, Interrupted, UserError
from autoseg.storage import WRITE_MENDS

COMMAND_STARTED: ContextVar[float] = ContextVar("COMMAND_STARTED")  # a time budget counts from here; torch loads later
ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("ARGUMENTS")  # as typed, to name the command that goes on
DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
# Older typer stands on click, newer brings its own copy: take the base class from what typer itself raises.
COMMAND_LINE_ERROR = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def run(arguments: list[str]) -> int:
    """Run the command line `arguments` and return the exit code."""
    COMMAND_STARTED.set(time.monotonic())
    ARGUMENTS.set(tuple(arguments))
    debug = "--debug" in arguments
    plain = [argument for argument in arguments if argument != "--debug"]
    _open_what_is_closed()
    with interrupted_at_once():
        from autoseg.cli.app import app

        set_up_logging(debug)
        command = typer.main.get_command(app)
    try:
        with termination_as_interrupt(), command.make_context("autoseg", plain) as context:
            outcome = command.invoke(context)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else DONE
    except typer.Exit as leave:
        return leave.exit_code
    except COMMAND_LINE_ERROR as error:
        error.show()
        return WRONG_USE
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        typer.echo(message, err=True)
        return code


def command_that_goes_on() -> str:
    """Return the running command as typed, but for `--restart`, which would begin anew."""
    kept = [argument for argument in ARGUMENTS.get(()) if argument != "--restart"]
    return subprocess.list2cmdline(["autoseg", *kept]) if os.name == "nt" else shlex.join(["autoseg", *kept])


class Terminated(KeyboardInterrupt):
    """SIGTERM came; a KeyboardInterrupt, so that it ends whatever Ctrl-C ends."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Make SIGTERM raise Terminated within, and hand it and Ctrl-C on to the child processes that are left.

    Training, which answers both with a checkpoint, has its own way and puts this one back. Where SIGTERM is ignored or
    handled by somebody else, or outside of the main thread, it stays as it is.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        _end_children()
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _end_children() -> None:
    """Ask child processes to end, such as those that train one fold together; this process waits for them."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.terminate()


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message for the user and the exit code of an error."""
    if isinstance(error, Interrupted):
        return f"interrupted: {error}", INTERRUPTED
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        by = " by SIGTERM" if isinstance(error, Terminated) else ""
        return (
            f"interrupted{by}; what was finished before is kept, and the same command goes on from there",
            INTERRUPTED,
        )
    if isinstance(error, (CasesFailed, CaseError)):
        return f"error: {error}", WRONG_USE if isinstance(error, CasesFailed) and error.all_failed else SOME_FAILED
    if isinstance(error, AutosegError):
        return f"error: {error}", WRONG_USE
    if isinstance(error, OSError) and (error.filename is not None or error.errno in WRITE_MENDS):
        told = UserError(str(error.strerror), where=error.filename, mend=WRITE_MENDS.get(error.errno))
        return f"error: {told}", WRONG_USE
    return f"error: {type(error).__name__}: {error}\n{_where_the_traceback_is(error)}", WRONG_USE


def _open_what_is_closed() -> None:
    """Have whoever writes to an output that nobody listens to, as schedulers start commands, write to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process


def _where_the_traceback_is(error: BaseException) -> str:
    """Keep the traceback of an unexpected error, which a long run must not lose, in a file."""
    try:
        handle, name = tempfile.mkstemp(prefix="autoseg-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # a container without a place to write
        return "This is a defect of autoseg or of a plug-in (--debug shows the traceback)"
    return f"This is a defect of autoseg or of a plug-in; the traceback is in {Path(name)} (--debug shows it here)"


def set_up_logging(debug: bool = False) -> None:
    """Send messages of autoseg to stderr: INFO and above, or with `debug` everything, Python warnings included."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, StderrHandler)]:
        root.removeHandler(handler)
    root.addHandler(StderrHandler(debug))
    logging.getLogger("autoseg").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.CRITICAL)


class StderrHandler(logging.Handler):
    """Writes each message as one line above a running progress bar."""

    def __init__(self, debug: bool):
        super().__init__()
        self.debug = debug
        self._warned: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, with its origin when debugging, else with its level from warnings on."""
        text = super().format(record)
        if self.debug:
            return f"{record.levelname.lower()} {record.name}: {text}"
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record to the present stderr; a warning that was written already says nothing new."""
        try:
            if record.levelno == logging.WARNING and not self.debug:
                if record.getMessage() in self._warned:
                    return
                self._warned.add(record.getMessage())
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(self.format(record), file=sys.stderr)
            else:
                sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
