"""What becomes of one case in a worker: its value, or why there is none."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import AutosegError, CaseError


@dataclass(frozen=True)
class Result:
    """What became of one case: a value, or the error that says why there is none."""

    case: str
    value: Any = None
    error: CaseError | None = None


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back: a value, or a reason and a traceback; and its memory high-water mark in bytes."""

    value: Any = None
    reason: str | None = None
    trace: str = ""
    peak: int = 0


def attempt(function: Callable[[Any], Any], item: Any) -> Outcome:
    """Return what a call gives or why it fails."""
    try:
        return Outcome(function(item), peak=own_peak())
    except Exception as error:
        return Outcome(reason=reason_of(error), trace=traceback.format_exc(), peak=own_peak())


def reason_of(error: BaseException) -> str:
    """Return a user's message as it is, of any other exception type, message and place."""
    if isinstance(error, AutosegError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def result_of(case: str, stage: str, outcome: Outcome) -> Result:
    """Return the result of a case, the traceback of its worker as a note of the error."""
    if outcome.reason is None:
        return Result(case, outcome.value)
    error = CaseError(case, stage, outcome.reason)
    if outcome.trace:
        error.add_note(f"traceback of the worker:\n{outcome.trace}")
    return Result(case, error=error)


def own_peak() -> int:
    """Return the memory high-water mark of this process in bytes, 0 where it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
