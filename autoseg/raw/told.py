"""Commands that messages tell: with the data set's path and the workspace, where name and default do not find them."""

from __future__ import annotations

import shlex
from pathlib import Path

from autoseg.raw.dataset import Dataset
from autoseg.workspace import Workspace


def told(command: str, dataset: Dataset, workspace: Workspace, *more: object) -> str:
    """Return a command on a data set as a user can type it: `command`, the data set, `more`, the workspace."""
    words = ["autoseg", command, data_path(dataset, workspace) or dataset.name, *map(str, more)]
    own = workspace == Workspace.open(workspace.root)  # else its three folders are elsewhere, which no option can name
    return shlex.join([*words, *(workspace_option(workspace.root) if own else ())])


def data_path(dataset: Dataset, workspace: Workspace) -> str | None:
    """Return the absolute path of a data set, None where its name finds it in the workspace."""
    path = (dataset.source or dataset.folder).absolute()
    in_workspace = path.is_dir() and path.parent.resolve() == workspace.raw.resolve()
    found = in_workspace and path.name == dataset.name and path.name.startswith("Dataset")
    return None if found else str(path)


def workspace_option(root: Path) -> list[str]:
    """Return the option that names the workspace in the folder `root`; none where it is the default."""
    same = _folders(Workspace.open(root)) == _folders(Workspace.open())
    return [] if same else ["--workspace", str(root.absolute())]


def _folders(workspace: Workspace) -> list[Path]:
    return [folder.resolve() for folder in (workspace.raw, workspace.preprocessed, workspace.results)]
