"""`autoseg plan-and-preprocess`: fingerprint, plans, preprocessed store."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoseg.cli.durations import parse_duration
from autoseg.cli.options import Dataset, Debug, Device, Json, NetworkOptions, Restart, Workers, WorkspaceFolder
from autoseg.cli.output import echo_json, echo_table
from autoseg.errors import CasesFailed, UserError

if TYPE_CHECKING:
    from autoseg import raw
    from autoseg.fingerprinting import Fingerprint
    from autoseg.plans import Plans
    from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


def plan_and_preprocess(
    dataset: Dataset,
    planner: Annotated[str, typer.Option("--planner", metavar="NAME|FILE", help="Which planner.")] = "auto",
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME|FILE", help="Plan for this network.", show_default=False),
    ] = None,
    network_options: NetworkOptions = None,
    plans_from: Annotated[
        Path | None,
        typer.Option(
            "--plans-from",
            metavar="MODEL",
            help="Take network, spacing and patch from this model folder, to fine-tune it. No planner is asked.",
            show_default=False,
        ),
    ] = None,
    keep_plans: Annotated[
        bool,
        typer.Option("--keep-plans", help="Preprocess by the plans that are there, edited or not; nothing is planned."),
    ] = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", metavar="GiB", help="Plan for a GPU with this memory.", show_default=False),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(
            "--time-budget",
            metavar="T",
            parser=parse_duration,
            show_default=False,
            help="Training time to plan for, of one configuration's whole cross-validation: 90s, 10m, 1h30m.",
        ),
    ] = None,
    configurations: Annotated[
        list[str] | None,
        typer.Option("-c", "--configurations", metavar="CONFIG", help="Only these configurations.", show_default=False),
    ] = None,
    plans_name: Annotated[
        str | None,
        typer.Option("--plans-name", metavar="NAME", help="Default: the planner's name.", show_default=False),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    restart: Restart = False,
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Plan every configuration, preprocess every case.

    \b
    Example:
      autoseg plan-and-preprocess Dataset004_Hippocampus -c 2d 3d_fullres --time-budget 10m
    """
    from autoseg.cli.values import parse_values
    from autoseg.planning import plan
    from autoseg.planning.resources import check_memory
    from autoseg.plans import Plans
    from autoseg.preprocessing import preprocess
    from autoseg.raw import open_dataset
    from autoseg.workspace import Workspace

    options = parse_values(network_options or [])
    if gpu_memory is not None:
        check_memory(gpu_memory)  # before the data set is measured, which may take long
    if plans_from is not None or keep_plans:
        refuse_planning(
            "--keep-plans takes the plans that are there" if keep_plans else "--plans-from takes the model's plans",
            {"--planner": planner != "auto", "--architecture": architecture, "--gpu-memory": gpu_memory,
             "--time-budget": time_budget, "--network-option": network_options,
             "--plans-from": keep_plans and plans_from},
        )  # fmt: skip
    place = Workspace.open(workspace)
    data = open_dataset(dataset, place)
    measured = measure(data, place, workers=workers, restart=restart)
    if keep_plans:
        plans = Plans.read(place.plans_file(data.name, plans_name or planner))
    elif plans_from is not None:
        from autoseg.interop import move_plans

        plans = move_plans(plans_from, data, measured, place, plans_name or "moved")
    else:
        plans = plan(
            data,
            measured,
            place,
            planner=planner,
            architecture=architecture,
            gpu_memory=gpu_memory,
            time_budget=time_budget,
            configurations=configurations or None,
            plans_name=plans_name,
            device=device,
            network_options=options,
        )
    file = place.plans_file(data.name, plans.plans_name)
    if json:
        echo_json({"dataset": data.name, "plans": file, "configurations": summary(plans)})
    else:
        rows = [(name, *entry.values()) for name, entry in summary(plans).items()]
        echo_table(("configuration", "spacing (mm)", "patch", "batch", "network", "steps"), rows)
        for note in plans.notes:
            typer.echo(note)
        typer.echo(f"plans: {file}")
    preprocess(data, plans, place, configurations or None, workers=workers, restart=restart)


def refuse_planning(why: str, options: dict[str, Any]) -> None:
    """Raise UserError for the first planning option that is set, where nothing is planned."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} plans anew, while {why}", mend="leave one of them out")


def measure(data: raw.Dataset, place: Workspace, *, workers: int | None, restart: bool) -> Fingerprint:
    """Return the fingerprint of the cases that can be read; preprocessing tells, at the end, of those that cannot."""
    from autoseg.fingerprinting import FINGERPRINT_FILE, Fingerprint, fingerprint

    file = place.preprocessed_folder(data.name) / FINGERPRINT_FILE
    try:
        return fingerprint(data, place, workers=workers, restart=restart)
    except CasesFailed as error:
        failed = {failure.case for failure in error.failures}
        if failed >= {case.id for case in data.cases} or not file.is_file():
            raise
        log.warning("%s; planning goes on without them", error)
        return Fingerprint.read(file)


def summary(plans: Plans) -> dict[str, dict[str, Any]]:
    """Return configuration -> the choices that people ask for first."""
    return {
        name: {
            "spacing": " ".join(f"{value:.4g}" for value in configuration.spacing),
            "patch_size": " ".join(map(str, configuration.patch_size)),
            "batch_size": configuration.batch_size,
            "architecture": configuration.architecture,
            "steps": configuration.training.steps,
        }
        for name, configuration in plans.configurations.items()
    }
