"""Options that several commands share, so that they mean and read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.durations import parse_duration

Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder, case list (.json, .csv), or name or number in the workspace.")
]
Configuration = Annotated[
    str, typer.Argument(metavar="CONFIGURATION", help="A configuration of the plans, such as 2d or 3d_fullres.")
]
WorkspaceFolder = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        help="Where results go. Default: $AUTOSEG_WORKSPACE, else ./autoseg_workspace.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Restart = Annotated[bool, typer.Option("--restart", help="Do it anew, even where it is already done.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Parallel workers. Default: what cores and memory allow.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")]
Devices = Annotated[
    str,
    typer.Option(
        "--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps; folds are spread over several: cuda:0,cuda:1."
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every random number, 0 to 4294967295.")]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="T",
        parser=parse_duration,
        show_default=False,
        help="Time for the whole command, such as 90s, 10m or 1h30m.",
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Keep the runs under this name, beside other runs of the same trainer.",
        show_default=False,
    ),
]
NetworkOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--network-option",
        metavar="NAME=VALUE",
        help="An option of the architecture, such as size=L.",
        show_default=False,
    ),
]
PlansName = Annotated[str, typer.Option("--plans", metavar="NAME", help="Name of the plans.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the trainer.", show_default=False),
]
Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Settings as a TOML file; --set wins over it.", show_default=False),
]
Processes = Annotated[int, typer.Option("--processes", min=1, metavar="N", help="Processes, one per GPU.")]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="The same seed gives the same bits, at some cost of speed; not with --time-budget."
    ),
]
# Known to `autoseg.cli.running` before any command is parsed; it stands in the signatures so that --help shows it.
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")]
