"""The command line: one file per command; each parses, calls the Python API, and prints."""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code (0 done, 1 some cases failed, 2 wrong use, 130 interrupted)."""
    import sys

    from autoseg.cli.interrupts import interrupted_at_once, leave_with
    from autoseg.cli.starting_again import start_again

    with interrupted_at_once():
        if arguments is None:
            start_again(sys.argv[1:])
        from autoseg.cli.running import run

    leave_with(run(sys.argv[1:] if arguments is None else arguments))
