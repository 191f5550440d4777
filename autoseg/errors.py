"""The one family of errors: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any


class AutosegError(Exception):
    """Base of every error that autoseg raises on purpose."""


class UserError(AutosegError):
    """Wrong use or bad data, told in one message: what is wrong, where, and how to mend it.

    `where` is a file, a field or a case; `mend` an instruction in the imperative.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, mend: str | None = None):
        self.what = what
        self.where = None if where is None else str(where)
        self.mend = mend
        parts = [what if where is None else f"{where}: {what}"]
        if mend:
            parts.append(f"To mend it: {mend}")
        super().__init__("\n".join(parts))


class InputsGone(UserError):
    """What a run learns from, such as its teachers, is not there (any more)."""


class CaseError(AutosegError):
    """One case failed in one stage; the other cases are complete."""

    def __init__(self, case: str, stage: str, reason: str):
        self.case = case
        self.stage = stage
        self.reason = reason
        super().__init__(f"case {case}, {stage}: {reason}")

    def __reduce__(self) -> tuple[type[CaseError], tuple[str, str, str]]:
        return type(self), (self.case, self.stage, self.reason)  # so that it survives the way back from a worker


class CasesFailed(AutosegError):
    """Some cases failed, the others are complete (exit code 1); with `all_failed` there are no others (2)."""

    def __init__(self, failures: Sequence[CaseError], *, all_failed: bool = False):
        self.failures = tuple(failures)
        self.all_failed = all_failed
        others = "there is no other case" if all_failed else "the others are complete"
        lines = [f"{len(self.failures)} case(s) failed; {others}:"]
        super().__init__("\n".join(lines + [f"  {failure}" for failure in self.failures]))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), all_failed=self.all_failed), (self.failures,)


class Interrupted(AutosegError):
    """Stopped on request; a usable checkpoint was written (exit code 130)."""
