"""What plug-ins a Python source defines, read without running it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError)  # what reading a source may end with


@dataclass(frozen=True)
class Definition:
    """A top-level class or function decorated with `register.<kind>("name")`."""

    kind: str
    name: str
    line: int
    summary: str  # the first line of its docstring, or of the file's


def definitions_in(path: Path) -> tuple[Definition, ...]:
    """Return the plug-ins that a source file defines; a file that does not parse defines none."""
    try:
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        return definitions(source) if "register" in source else ()
    except UNREADABLE:
        return ()


@lru_cache(maxsize=256)  # of the same text: every command looks for several names in all files
def definitions(source: str) -> tuple[Definition, ...]:
    """Return the plug-ins that a source defines."""
    tree = parse(source)
    return tuple(
        Definition(
            kind, name, node.lineno, (ast.get_docstring(node) or ast.get_docstring(tree) or "").partition("\n")[0]
        )
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for kind, name in _registered(node.decorator_list)
    )


def parse(source: str) -> ast.Module:
    """Return the tree of a source; what Python only warns of is the business of who wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _registered(decorators: Sequence[ast.expr]) -> Iterator[tuple[str, str]]:
    for node in decorators:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and _last_name(node.func.value) == "register"
        ):
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            for one in given:
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield node.func.attr, one.value


def _last_name(node: ast.expr) -> str | None:
    """Return the name at the end of `name` or `a.b.name`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
