"""Finds planners, trainers and architectures by name or by file, without importing unrelated files.

Names are read from the source (`ast`): a top-level class or function decorated with `register.<kind>("name")`. Places,
in this order: a file given by path (`file.py` or `file.py:name`), `./<kind>s/`, `<workspace>/<kind>s/`, installed
packages (entry points `autoseg.<kind>s`, the built-ins included).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from autoseg.errors import UserError
from autoseg.plugin_sources import UNREADABLE, definitions_in, parse

Kind = Literal["trainer", "planner", "architecture"]
KINDS: tuple[Kind, ...] = ("trainer", "planner", "architecture")
T = TypeVar("T")


class Register:
    """Decorators that mark a class or function as a plug-in: `@register.trainer("name")`."""

    def trainer(self, name: str) -> Callable[[T], T]:
        """Mark a Trainer subclass."""
        return _mark("trainer", name)

    def planner(self, name: str) -> Callable[[T], T]:
        """Mark a Planner subclass."""
        return _mark("planner", name)

    def architecture(self, name: str, *, sizing: str = "") -> Callable[[T], T]:
        """Mark an Architecture subclass; `sizing`: `module:Class` of its NetworkSizing, read from the source."""
        return _mark("architecture", name)


register = Register()


def _mark(kind: Kind, name: str) -> Callable[[T], T]:
    def decorate(plugin: T) -> T:
        names = dict(getattr(plugin, "__dict__", {}).get("autoseg_names", {}))
        plugin.autoseg_names = {**names, name: kind}  # type: ignore[attr-defined]
        return plugin

    return decorate


@dataclass(frozen=True)
class Found:
    """One definition of a plug-in: its name, where it stands, and the first sentence of its docstring."""

    kind: Kind
    name: str
    path: Path
    line: int
    summary: str
    sizing: str = ""  # `module:Class` of what plans are made from, where that is not the class
    sets: frozenset[str] = frozenset()  # names that the class itself defines

    @property
    def reference(self) -> str:
        """Return what finds this plug-in again in another process: the name, or file and name for loose files."""
        return self.name if _module_name(self.kind, self.path) else f"{self.path.resolve()}:{self.name}"


def list_plugins(kind: Kind, workspace: Path | None = None) -> list[Found]:
    """Return every plug-in of a kind that can be found by name, sorted by name; nothing is imported."""
    found: dict[tuple[str, Path, int], Found] = {}
    for folder in search_places(kind, workspace):
        for entry in _scan_folder(kind, folder):
            found.setdefault((entry.name, entry.path.resolve(), entry.line), entry)
    return sorted(found.values(), key=lambda entry: entry.name)


def find(
    kind: Kind,
    reference: str,
    workspace: Path | None = None,
    *,
    places: Sequence[Path] | None = None,
    data: Path | None = None,
) -> Found:
    """Return where the plug-in `reference` (a name, `file.py`, or `file.py:name`) is defined; UserError if nowhere.

    What lies with the `data`, the folder of a data set, may have come with them: no name finds it, but it is told.
    """
    path, _, name = reference.rpartition(":") if ".py:" in reference else (reference, "", "")
    if path.endswith(".py") and places is None:
        return _find_in_file(kind, Path(path), name)
    places = search_places(kind, workspace) if places is None else places
    hits: dict[tuple[Path, int], Found] = {}
    names: set[str] = set()
    for entry in (entry for folder in places for entry in _scan_folder(kind, folder)):
        names.add(entry.name)
        if entry.name == reference:
            hits.setdefault((entry.path.resolve(), entry.line), entry)
    if len(hits) > 1:
        raise defined_twice(kind, reference, hits.values())
    if hits:
        return next(iter(hits.values()))
    close = difflib.get_close_matches(reference, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(names)) or 'none'}"
    searched = ", ".join(str(place) for place in places)
    mend = f"searched: {searched}; or give a path FILE.py"
    beside = [] if data is None else [folder / f"{kind}s" for folder in (data, data.parent)]
    for entry in (entry for folder in beside for entry in _scan_folder(kind, folder)):  # sources are read, not run
        if reference in (entry.name, entry.path.stem):
            hint = f"a file of that name lies with the data, of which nothing is run unless you say so: {entry.path}"
            mend = f"read this file, then give its path: --{kind} {shlex.quote(str(entry.path))}"
    raise UserError(f"no {kind} called {reference!r}; {hint}", mend=mend)


def load(kind: Kind, reference: str, workspace: Path | None = None) -> Any:
    """Import and return the plug-in that `find` finds."""
    return _load(kind, find(kind, reference, workspace))


def load_sizing(reference: str, workspace: Path | None = None) -> Any:
    """Return what plans size an architecture by: its class, or the NetworkSizing without torch that it names.

    A class that itself defines what a NetworkSizing has is planned by what it defines.
    """
    entry = find("architecture", reference, workspace)
    if entry.sizing:
        from autoseg.network_sizing import NetworkSizing

        sizing = named_sizing(entry)
        if not entry.sets & {name for name in vars(NetworkSizing) if not name.startswith("_")}:
            return sizing
    return _load("architecture", entry)


def named_sizing(entry: Found) -> Any:
    """Import and return the NetworkSizing that an architecture names; raises UserError where there is none."""
    from autoseg.network_sizing import NetworkSizing

    module, _, name = entry.sizing.partition(":")
    try:
        sizing = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise _no_sizing(entry, str(error)) from error
    if not isinstance(sizing, type) or not issubclass(sizing, NetworkSizing):
        raise _no_sizing(entry, "it is no autoseg.network_sizing.NetworkSizing")
    return sizing


def _no_sizing(entry: Found, why: str) -> UserError:
    return UserError(
        f"the sizing {entry.sizing!r} of {entry.name!r} cannot be taken: {why}", where=f"{entry.path}:{entry.line}",
        mend='name its module, which must be importable, and its class, sizing="module:Class", or leave it out',
    )  # fmt: skip


def load_installed(kind: Kind, name: str) -> Any:
    """Import and return the plug-in of that name that an installed package brings.

    That is how a name that a foreign file gives is resolved: the folder one stands in may have come with that file.
    """
    return _load(kind, find(kind, name, places=list(_installed(kind))))


def _load(kind: Kind, entry: Found) -> Any:
    module = _import_file(kind, entry.path)
    for value in vars(module).values():
        if _own_names(value).get(entry.name) == kind:
            return value
    raise UserError(f"{kind} {entry.name!r} did not register itself", where=entry.path)


def build_network(reference: str, spec: Any, workspace: Path | None = None, *, installed: bool = False) -> Any:
    """Return the network `reference`, with `installed` of an installed package, built from a NetworkSpec."""
    architecture = (
        load_installed("architecture", reference) if installed else load("architecture", reference, workspace)
    )
    if spec.dims not in architecture.dims:
        raise no_form(reference, spec.dims)
    return architecture(spec)


def no_form(reference: str, dims: int) -> UserError:
    """Return what is said where an architecture does not serve 2D or 3D."""
    return UserError(
        f"architecture {reference!r} has no {dims}D form",
        mend="choose another configuration or architecture; `autoseg list architectures` shows the dimensions",
    )


def loose_file(kind: Kind, reference: str, workspace: Path | None = None) -> Path | None:
    """Return the file of a plug-in that no installed package brings, None for an installed one."""
    path = find(kind, reference, workspace).path
    return None if _module_name(kind, path) else path


def in_file(kind: Kind, path: Path) -> list[Found]:
    """Return the plug-ins of a kind that a source file defines; a file that does not parse defines none."""
    return [
        Found(kind, one.name, path, one.line, one.summary, one.sizing, one.sets)
        for one in definitions_in(path)
        if one.kind == kind
    ]


def search_places(kind: Kind, workspace: Path | None = None) -> list[Path]:
    """Return the folders searched for plug-ins of a kind, in order, existing or not."""
    places = [Path.cwd() / f"{kind}s"]
    if workspace is not None:
        places += [Path(workspace) / f"{kind}s", Path(workspace).parent / f"{kind}s"]
    places += _installed(kind)
    unique: dict[Path, Path] = {}
    for place in places:
        unique.setdefault(place.resolve(), place)
    return list(unique.values())


def _installed(kind: Kind) -> dict[Path, str]:
    """Return folder or file -> module name of the installed packages and modules that bring plug-ins of a kind."""
    package = importlib.util.find_spec(f"autoseg.{kind}s")
    found = {Path(folder): f"autoseg.{kind}s" for folder in (package and package.submodule_search_locations) or []}
    for point in _points(f"autoseg.{kind}s", tuple(sys.path)):
        top, *rest = point.module.split(".")
        spec = importlib.util.find_spec(top)
        if spec is None:
            continue
        if spec.submodule_search_locations:
            place = Path(spec.submodule_search_locations[0]).joinpath(*rest)
            found.setdefault(place if place.is_dir() else place.with_suffix(".py"), point.module)
        elif spec.origin and not rest:
            found.setdefault(Path(spec.origin), point.module)
    return found


@cache  # asking the environment takes longer than reading a file
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group that are installed in the folders of `path`, which is `sys.path`."""
    return tuple(entry_points(group=group))


def _module_name(kind: Kind, path: Path) -> str | None:
    """Return the module name of a plug-in file inside an installed package, None for a loose file."""
    path = path.resolve()
    for place, module in _installed(kind).items():
        if path == place.resolve():
            return module
        if path.is_relative_to(place.resolve()):
            return ".".join([module, *path.relative_to(place.resolve()).with_suffix("").parts])
    return None


def _scan_folder(kind: Kind, folder: Path) -> list[Found]:
    if folder.is_file():
        return in_file(kind, folder)
    files = sorted(path for path in folder.rglob("*.py") if not path.name.startswith((".", "_")))
    installed = list(_installed(kind))
    return [entry for path in files for entry in in_file(kind, _installed_twin(path, installed))]


def _installed_twin(path: Path, installed: Sequence[Path]) -> Path:
    """Return the installed file that `path` is a copy of, else `path`: who works in a clone of autoseg has both."""
    for place in installed:
        twin = place / path.name
        if twin != path and twin.is_file() and _same_content(twin, path):
            return twin
    return path


def _same_content(one: Path, other: Path) -> bool:
    try:  # a pipe, a folder or a file that may not be read can have the name of an installed plug-in
        return other.is_file() and one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def _find_in_file(kind: Kind, path: Path, name: str) -> Found:
    if not path.is_file():
        raise UserError("the plug-in file does not exist", where=path, mend="correct the path")
    try:
        parse(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise UserError(
            f"not valid Python: {str(error) or type(error).__name__}", where=path, mend="correct the file"
        ) from None
    entries = [entry for entry in in_file(kind, path) if name in ("", entry.name)]
    if not entries:
        what = f"no {kind} {name!r} registered here" if name else f"no {kind} registered here"
        raise UserError(what, where=path, mend=f'add @register.{kind}("name") to its class')
    if len(entries) > 1:
        first, second = entries[:2]
        if first.name == second.name:
            raise defined_twice(kind, first.name, entries)
        names = ", ".join(entry.name for entry in entries)
        raise UserError(f"several {kind}s here: {names}", where=path, mend=f"say which: {path}:{entries[0].name}")
    return entries[0]


def defined_twice(kind: Kind, name: str, entries: Iterable[Found]) -> UserError:
    """Return what is said of a name that several of the entries have."""
    places = [f"{entry.path}:{entry.line}" for entry in entries if entry.name == name]
    one_file = len({place.rpartition(":")[0] for place in places}) == 1
    mend = "rename one" if one_file else "rename one, or give FILE.py:NAME"
    return UserError(f"{kind} {name!r} is defined twice: {' and '.join(places)}", mend=mend)


def _own_names(plugin: Any) -> dict[str, Kind]:
    return getattr(plugin, "__dict__", {}).get("autoseg_names", {})


def _import_file(kind: Kind, path: Path) -> Any:
    """Import a plug-in file: installed ones under their package name, loose ones under a name made of their content."""
    installed = _module_name(kind, path)
    if installed:
        try:
            return importlib.import_module(installed)
        except ImportError as error:
            mend = f"install the package {error.name!r}" if error.name else None
            raise UserError(f"importing the plug-in failed: {error}", where=path, mend=mend) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    module_name = f"autoseg_plugin_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError("cannot be imported", where=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(f"importing the plug-in failed: {type(error).__name__}: {error}", where=path) from error
    return module
