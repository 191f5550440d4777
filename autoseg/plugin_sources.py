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
    sizing: str = ""  # `module:Class`, what plans are made from in place of a network's class
    sets: frozenset[str] = frozenset()  # names that the class itself defines


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
        Definition(kind, name, node.lineno, _first_line(node) or _first_line(tree), sizing, _set_by(node))
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for kind, name, sizing in _registered(node.decorator_list)
    )


def _set_by(node: ast.ClassDef | ast.FunctionDef) -> frozenset[str]:
    """Return the names that the body of a class assigns or defines."""
    names: set[str] = set()
    for one in node.body:
        if isinstance(one, (ast.FunctionDef, ast.ClassDef)):
            names.add(one.name)
        targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def _first_line(node: ast.ClassDef | ast.FunctionDef | ast.Module) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def parse(source: str) -> ast.Module:
    """Return the tree of a source; what Python only warns of is the business of who wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _registered(decorators: Sequence[ast.expr]) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and sizing of every `@register.<kind>("name")`."""
    for node in decorators:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and _last_name(node.func.value) == "register"
        ):
            given = {keyword.arg: _text(keyword.value) for keyword in node.keywords}
            name = _text(node.args[0]) if node.args else given.get("name")
            if name is not None:
                yield node.func.attr, name, given.get("sizing") or ""


def _text(node: ast.expr) -> str | None:
    """Return the text that a literal is, None for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _last_name(node: ast.expr) -> str | None:
    """Return the name at the end of `name` or `a.b.name`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
