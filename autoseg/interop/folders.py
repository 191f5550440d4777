"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import UserError


def refuse_model_folder(output: Path, model_folder: Path) -> None:
    """Raise UserError if `output` is the model folder or lies in it: a model folder holds a model and nothing else."""
    place = output.resolve()
    if any(folder.exists() and folder.samefile(model_folder) for folder in (place, *place.parents)):
        raise UserError(
            f"the output folder is the model folder {model_folder}, or lies in it",
            where=output,
            mend="choose an output folder beside the model folder",
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its name when the block ends well, and vanishes otherwise.

    Raises UserError if there is something at `target` already, other than an empty folder.
    """
    target = target if target.name else target.absolute()
    with new_folders(target.parent, [target.name]) as temporary:
        (temporary / target.name).mkdir()
        yield temporary / target.name


@contextmanager
def new_folders(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder; what the block makes in it under `names` appears below `root` when it ends well.

    Names are relative paths. Raises UserError if there is something at one of them already, other than an empty
    folder; whatever else lies below `root` stays as it is.
    """
    targets = [root / name for name in names]
    for target in targets:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(
                "there is something already", where=target, mend="delete it, or choose another output folder"
            )
    parents = {parent for target in targets for parent in target.parents if not parent.exists()}
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
    moved: list[Path] = []
    try:
        yield temporary
        for name, target in zip(names, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmdir()
            (temporary / name).rename(target)
            moved.append(target)
        shutil.rmtree(temporary)
    except BaseException:
        for folder in (temporary, *moved):
            shutil.rmtree(folder, ignore_errors=True)
        for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
