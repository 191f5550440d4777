"""`autoseg list`: which trainers, architectures and planners there are."""

from __future__ import annotations

import ast
import contextlib
import logging
import re
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autoseg.cli.options import Debug, Json, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table
from autoseg.errors import UserError
from autoseg.plugins import Found, defined_twice, named_sizing
from autoseg.plugins import list_plugins as find_all

log = logging.getLogger(__name__)

# how it was written, or a next sentence (the dot of "et al." ends none)
SOURCE_ENDS = r"[;,:]? (?=written\b|no code\b|as far as\b)|(?<!\bal)\. (?=[A-Z\"])"


class Kinds(StrEnum):
    """The kinds of plug-ins, as one says them."""

    trainers = "trainers"
    architectures = "architectures"
    planners = "planners"


def list_plugins(
    kinds: Annotated[Kinds, typer.Argument(metavar="trainers|architectures|planners", help="What to list.")],
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List trainers, architectures or planners. Nothing is imported, so broken files do no harm.

    \b
    Example:
      autoseg list architectures
    """
    from autoseg.workspace import Workspace

    there = find_all(kinds.value[:-1], Workspace.open(workspace).root)
    for name in [name for name, count in Counter(found.name for found in there).items() if count > 1]:
        log.warning("%s", defined_twice(kinds.value[:-1], name, there))
    entries = [describe(found) for found in there]
    if json:
        echo_json(entries)
        return
    columns = ("name", "dims", "summary", "source") if kinds is Kinds.architectures else ("name", "summary", "source")
    echo_table(columns, [[entry[column] for column in columns] for entry in entries])


def describe(found: Found) -> dict[str, Any]:
    """Return what the source of a plug-in says about it."""
    tree = ast.parse(found.path.read_text(encoding="utf-8"))
    node = next(node for node in tree.body if getattr(node, "lineno", 0) == found.line)
    documents = [ast.get_docstring(place) or "" for place in (node, tree)]
    source = next(filter(None, map(_source, documents)), None)
    return {
        "name": found.name,
        "family": _family(found.path),
        "dims": _dims_of(found, node) if found.kind == "architecture" else None,
        "summary": found.summary,
        "source": source,
        "file": str(found.path),
    }


def _source(document: str) -> str | None:
    """Return what a docstring says after "Source:", however many lines it takes; None if it says nothing."""
    match = re.search(r"Source:\s+(.+?)(?:\n\s*\n|\Z)", document, re.DOTALL)
    if match is None:
        return None
    said = re.split(SOURCE_ENDS, " ".join(match.group(1).split()), maxsplit=1)[0]
    return said.rstrip(" .;,:") + "."


def _family(path: Path) -> str | None:
    """Return the sub-folder of a family of plug-ins, if the file stands in one."""
    folder = path.parent.name
    return None if folder in {kind.value for kind in Kinds} else folder


def _dims_of(found: Found, node: ast.AST) -> str:
    """Return the dimensions an architecture serves: as its class says, else the sizing that it names."""
    if found.sizing and "dims" not in found.sets:
        with contextlib.suppress(UserError):  # planning tells what is wrong with it
            return ", ".join(f"{dims}D" for dims in named_sizing(found).dims)
    return _dims(node)


def _dims(node: ast.AST) -> str:
    """Return the dimensions a class serves as its source says; without a word it serves both."""
    for statement in getattr(node, "body", []):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id == "dims" and isinstance(statement.value, ast.Tuple):
            return ", ".join(f"{entry.value}D" for entry in statement.value.elts if isinstance(entry, ast.Constant))
    return "2D, 3D"
