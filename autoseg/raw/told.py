"""Commands that messages tell: with the data set's path and the workspace, where name and default do not find them."""

from __future__ import annotations

import shlex
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw.dataset import Dataset
from autoseg.workspace import Workspace


def told(command: str, dataset: Dataset, workspace: Workspace, *more: object) -> str:
    """Return a command on a data set as a user can type it: `command`, the data set, `more`, the workspace."""
    option = workspace_option(workspace, results=command != "plan-and-preprocess")
    reached = Workspace.open(workspace.root) if option else Workspace.open()
    return shlex.join(["autoseg", command, data_path(dataset, reached) or dataset.name, *map(str, more), *option])


def data_path(dataset: Dataset, workspace: Workspace) -> str | None:
    """Return the absolute path of a data set, None where its name finds it in the workspace."""
    path = (dataset.source or dataset.folder).absolute()
    in_workspace = path.is_dir() and path.parent.resolve() == workspace.raw.resolve()
    named = in_workspace and path.name == dataset.name and path.name.startswith("Dataset")
    return None if named and _found(dataset.name, workspace) == path.resolve() else str(path)


def workspace_option(workspace: Workspace, *, results: bool = True) -> list[str]:
    """Return the option that names a workspace; none where it is the default, or its folders are where no option says.

    Without `results`, for commands that neither read nor write any, their folder may be another one.
    """
    wanted, usual, named = (
        [folder.resolve() for folder in (each.raw, each.preprocessed, *([each.results] if results else []))]
        for each in (workspace, Workspace.open(), Workspace.open(workspace.root))
    )
    return ["--workspace", str(workspace.root.absolute())] if wanted == named != usual else []


def _found(name: str, workspace: Workspace) -> Path | None:
    """Return what a name finds: maybe a folder of that name where the command runs."""
    try:
        return workspace.find_dataset(name).resolve()
    except UserError:
        return None
