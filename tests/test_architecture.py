"""The house stands: rooms import lower floors only, the engine knows no plug-in, plug-ins know only the engine."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autoseg

ROOT = Path(autoseg.__file__).resolve().parent
REPOSITORY = Path(__file__).resolve().parents[1]

FLOORS = (
    "errors storage randomness plans plan_bounds architecture network_room network_sizing labels plugin_sources "
    "plugins workspace workers devices cpu_layers cpu_norm allocator machine lock waiting watching interpreter_watch "
    "hang_teller deadlines worker_pool worker_results worker_start crash_guard worker_life regular_files",
    "raw preprocessing fingerprinting store model_folder",
    "batches losses evaluation",
    "inference",
    "training",
    "planning",
    "selection",
    "reporting interop demo conformance benchmarking",
    "cli",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
PLUGIN_PACKAGES = ("trainers", "planners", "architectures")
TORCH_FREE = (
    "errors storage randomness plans network_sizing labels plugin_sources plugins workspace workers "
    "model_folder raw fingerprinting cli"
)
# Importing these would break a promise of the design: no pickle on disk, nothing that fails on a CPU build of torch.
# The worker pool alone pickles, between processes of its own.
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "torchvision", "timm", "nnunetv2", "sklearn"}


def imported_names(source: str) -> set[str]:
    """Every absolute name that a source imports, at any depth: functions and TYPE_CHECKING blocks included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def room_of(name: str) -> str | None:
    """The room that an imported name belongs to; None outside of autoseg. `autoseg.Trainer` is in `training`."""
    package, *rest = name.split(".")
    if package != "autoseg":
        return None
    if not rest or rest[0].startswith("__"):
        return ""
    if rest[0] in FLOOR or rest[0] in PLUGIN_PACKAGES:
        return rest[0]
    assert rest[0] in autoseg._PLACES, f"{name} is in no room; add the room to the table of floors"
    return autoseg._PLACES[rest[0]].partition(":")[0].split(".")[1]


def engine_files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py" and "data" not in path.parts)


def plugin_files() -> list[tuple[str, Path]]:
    return [(package, path) for package in PLUGIN_PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def own_room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_the_parser_sees_hidden_imports():
    source = """
from typing import TYPE_CHECKING
import autoseg.raw as raw
if TYPE_CHECKING:
    from autoseg import Trainer
def f():
    from autoseg.planning.rules import x
    import importlib
    importlib.import_module("autoseg.cli")
"""
    rooms = {room_of(name) for name in imported_names(source)} - {None}
    assert rooms == {"raw", "training", "planning", "cli"}


@pytest.mark.parametrize("path", engine_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_lower_floors_only(path):
    room = own_room(path)
    assert room in FLOOR, f"{room} stands on no floor"
    for name in imported_names(path.read_text(encoding="utf-8")):
        target = room_of(name)
        if not target:
            continue
        assert target not in PLUGIN_PACKAGES, f"the engine knows no plug-in, but {path.name} imports {name}"
        assert target == room or FLOOR[target] <= FLOOR[room], (
            f"{room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[target]})"
        )


def test_rooms_have_no_cycles():
    arrows: dict[str, set[str]] = {}
    for path in engine_files():
        targets = {room_of(name) for name in imported_names(path.read_text(encoding="utf-8"))}
        arrows.setdefault(own_room(path), set()).update(targets - {None, "", own_room(path)})
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError with the cycle
    assert set(order) >= set(arrows)


def test_every_public_name_has_a_place_that_exists():
    for name, place in autoseg._PLACES.items():
        module, _, attribute = place.partition(":")
        code = f"from {module} import {attribute or name}"
        assert room_of(f"{module}.x") in FLOOR, code


@pytest.mark.parametrize(("package", "path"), plugin_files(), ids=lambda value: getattr(value, "stem", value))
def test_plugins_import_the_engine_and_base_files_only(package, path):
    for name in imported_names(path.read_text(encoding="utf-8")):
        target = room_of(name)
        assert target not in ("cli", "demo", "reporting", "selection"), f"{path.name} imports {name}"
        if target in PLUGIN_PACKAGES:
            assert is_base(name), f"{path.name} imports {name}, which is a plug-in and no base file"


def is_base(name: str) -> bool:
    """A base file registers nothing itself, or is the first of a family that others are built upon."""
    package, *parts = name.split(".")[1:]
    file = next(
        candidate
        for length in range(len(parts), -1, -1)
        for candidate in (
            REPOSITORY.joinpath(package, *parts[:length]).with_suffix(".py"),
            REPOSITORY.joinpath(package, *parts[:length], "__init__.py"),
        )
        if candidate.is_file()
    )
    registers = re.search(r"^@register\.", file.read_text(encoding="utf-8"), re.MULTILINE)
    return not registers or file.stem in ("supervised", "auto", "mean_teacher")


@pytest.mark.parametrize("path", engine_files() + [path for _, path in plugin_files()], ids=lambda path: path.name)
def test_nothing_forbidden_is_imported(path):
    names = imported_names(path.read_text(encoding="utf-8")) - {"pickle.UnpicklingError"}  # which torch raises
    tops = {name.partition(".")[0] for name in names}
    assert tops & FORBIDDEN <= ({"pickle"} if path == ROOT / "worker_pool.py" else set())


def test_cheap_rooms_do_not_import_torch():
    rooms = [room for room in TORCH_FREE.split() if (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file()]
    code = "import sys\n" + "\n".join(f"import autoseg.{room}" for room in rooms) + "\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_import_autoseg_imports_nothing_heavy():
    code = "import sys, autoseg; print(sorted({'torch', 'numpy', 'pydantic', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
