"""One line of a conformance report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Violation(Exception):
    """A contract is not kept; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one plug-in."""

    plugin: str
    check: str
    ok: bool
    message: str = ""


def attempt(plugin: str, check: str, action: Callable[[], object]) -> Finding:
    """Return the finding of a check that raises where the contract is not kept."""
    try:
        action()
    except Violation as violation:
        return Finding(plugin, check, False, str(violation))
    except Exception as error:
        return Finding(plugin, check, False, f"{type(error).__name__}: {error}")
    return Finding(plugin, check, True)


def require(condition: object, message: str) -> None:
    """Raise a Violation with `message` unless the condition holds."""
    if not condition:
        raise Violation(message)
