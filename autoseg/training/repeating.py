"""The command that trains a run again: by what its run.json says, or only its place where that is damaged."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.errors import UserError

METHOD = "supervised"  # the default of `autoseg train`
GIVEN = ("recipe", "command line")  # origins of the settings that a command has to name


def mend_by_training(folder: Path, record: Mapping[str, Any] | None = None, *, restart: bool) -> str:
    """Return what tells a user to train the run in `folder` again; without `restart` it goes on from its checkpoint."""
    command = _command(folder, record, restart=restart)
    if command is None:
        return f"repeat the train command of this run{' with --restart' if restart else ''}"
    return f"run: {command}" + ("" if record is not None else ", with the other options of its first start")


def _command(folder: Path, record: Mapping[str, Any] | None, *, restart: bool) -> str | None:
    """Return the command, None for a folder that does not lie where runs lie."""
    experiment = folder.parent.name.rsplit("__", 2)
    if len(experiment) < 3 or not folder.name.startswith("fold_"):
        return None
    kept_as, plans, configuration = experiment
    words = ["autoseg", "train", folder.parent.parent.name, configuration, folder.name.removeprefix("fold_")]
    words += _method(folder, kept_as, record or {})
    words += [] if plans == "auto" else ["--plans", plans]
    words += _options(record or {})
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
