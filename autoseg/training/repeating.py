"""The command that trains a run again: by what its run.json says, or only its place where that is damaged."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.raw.told import data_path, workspace_option
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.raw import Dataset

METHOD = "supervised"  # the default of `autoseg train`
TRAIN, PRETRAIN = "train", "pretrain"  # the commands that make runs
GIVEN = ("recipe", "command line")  # origins of the settings that a command has to name


def origin(command: str, dataset: Dataset, workspace: Workspace) -> dict[str, str | None]:
    """Return what run.json keeps of the command that started a run, beside the names and settings of the run itself.

    `data` is the absolute path of the data set, None where its name finds it in the workspace. `workspace` is the
    workspace's folder, None where it has its three folders elsewhere, which no option can name.
    """
    own = workspace == Workspace.open(workspace.root)
    return {
        "command": command,
        "data": data_path(dataset, workspace),
        "workspace": str(workspace.root.absolute()) if own else None,
    }


def mend_by_training(folder: Path, record: Mapping[str, Any] | None = None, *, restart: bool) -> str:
    """Return what tells a user to train the run in `folder` again; without `restart` it goes on from its checkpoint."""
    command = _command(folder, record, restart=restart)
    if command is None:
        return f"repeat the train command of this run{' with --restart' if restart else ''}"
    return f"run: {command}" + ("" if record is not None else ", with the other options of its first start")


def command_of(folder: Path, record: Mapping[str, Any]) -> str:
    """Return `train` or `pretrain`: as recorded, in records of earlier versions by the method, without one by name."""
    if "command" in record:
        return record["command"]
    method = record.get("method") or folder.parent.name.rsplit("__", 2)[0]
    return PRETRAIN if _needs_no_labels(folder, method) else TRAIN


def _command(folder: Path, record: Mapping[str, Any] | None, *, restart: bool) -> str | None:
    """Return the command, None for a folder that does not lie where runs lie."""
    experiment = folder.parent.name.rsplit("__", 2)
    if len(experiment) < 3 or not folder.name.startswith("fold_"):
        return None
    kept_as, plans, configuration = experiment
    known = record or {}
    command = command_of(folder, known)
    words = ["autoseg", command, known.get("data") or folder.parent.parent.name, configuration]
    words += [folder.name.removeprefix("fold_")] if command == TRAIN else []
    words += _method(folder, kept_as, known)
    words += [] if plans == "auto" else ["--plans", plans]
    words += [*_options(known), *_workspace(folder, known)]
    return shlex.join([*words, "--restart"] if restart else words)


def _method(folder: Path, kept_as: str, record: Mapping[str, Any]) -> list[str]:
    """Return the options that find method and network, and keep the run under its name."""
    method, architecture = record.get("method"), record.get("architecture")
    if method is None:
        if kept_as == METHOD:
            return []
        return ["--trainer" if _is_trainer(kept_as) or (folder / "trainer.py").is_file() else "--name", kept_as]
    name = method.rpartition(":")[2] if ".py:" in method else method
    words = [] if method == METHOD else ["--trainer", method]
    if kept_as == name or architecture is None:
        return words
    if kept_as != f"{name}-{Path(architecture).stem}":
        words += ["--name", kept_as]
    return [*words, "--architecture", architecture]


def _needs_no_labels(folder: Path, method: str) -> bool:
    """Return whether this is the run of an installed method that needs no labels."""
    if folder.name != "fold_all":
        return False
    try:
        return not plugins.load_installed("trainer", method).needs_labels
    except UserError:
        return False


def _workspace(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Return the option that names the workspace, where it is not the default; it may have been moved."""
    if not record.get("workspace"):
        return []
    root, place = Path(record["workspace"]), folder.absolute()
    if len(place.parents) > 3 and place.parents[2].name == "results" and not _lies_in(root, place):
        root = place.parents[3]
    return workspace_option(Workspace.open(root))


def _lies_in(root: Path, place: Path) -> bool:
    found = root.joinpath("results", *place.parts[-3:])
    return found.is_dir() and found.samefile(place)  # not that of a workspace which this one was copied from


def _is_trainer(name: str) -> bool:
    try:
        plugins.find("trainer", name)
    except UserError:
        return False
    return True


def _options(record: Mapping[str, Any]) -> list[str]:
    """Return the other options without which the run would not be the same one."""
    words = []
    for name, setting in (record.get("settings") or {}).items():
        if setting["origin"] in GIVEN:
            words += ["--set", f"{name}={_text(setting['value'])}"]
    if record.get("labelled"):
        words += ["--labelled", str(record["labelled"])]
    if record.get("pretrained"):
        words += ["--pretrained", record["pretrained"]]
    if record.get("time_budget"):
        words += ["--time-budget", f"{math.ceil(record['time_budget'])}s"]
    if record.get("seed"):
        words += ["--seed", str(record["seed"])]
    return [*words, "--deterministic"] if record.get("deterministic") else words


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
