"""Printing results: tables for people, JSON for programs, both on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def echo_json(content: Any) -> None:
    """Print `content` as JSON; paths become text."""
    typer.echo(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under headers, numbers to the right; no value is shown as a dash."""
    texts = [[_text(cell) for cell in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in texts) and bool(texts) for column in range(len(headers))]
    widths = [max(len(row[column]) for row in [list(headers), *texts]) for column in range(len(headers))]
    for row in [list(headers), *texts]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).lstrip("-").isdigit()
