"""`autoseg new`: a starter file for a plug-in."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autoseg import plugins
from autoseg.cli.options import Debug
from autoseg.cli.starters import STARTERS
from autoseg.errors import UserError
from autoseg.storage import write_text


class Kind(StrEnum):
    """The kinds of plug-ins."""

    trainer = "trainer"
    planner = "planner"
    architecture = "architecture"


def new(
    kind: Annotated[Kind, typer.Argument(metavar="trainer|planner|architecture", help="What to start.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, like small_lesions.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Default: ./trainers/NAME.py and so on.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a starter file that works as it is.

    \b
    Example:
      autoseg new trainer small_lesions
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is no plug-in name", mend="use small letters, digits and underscores: small_lesions")
    taken = next((entry for entry in plugins.list_plugins(kind.value) if entry.name == name), None)
    if taken:
        raise UserError(f"{kind.value} {name!r} exists already: {taken.path}", mend="choose another name")
    file = output or Path(f"{kind.value}s") / f"{name}.py"
    if file.exists():
        raise UserError("the file exists already", where=file, mend="choose another name or --output")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    write_text(file, STARTERS[kind.value].replace("NAME", name).replace("CLASS", class_name))
    typer.echo(f"written: {file}")
    typer.echo(f"check it with: autoseg check-plugin {file}")
