"""Writes the self-contained model folder, atomically: a new folder is filled, then takes the place of the old one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, Member, Model, checksums
from autoseg.plans import Plans
from autoseg.plugins import find
from autoseg.selection.runs import Experiment, Run
from autoseg.storage import remove_leftovers, write_json
from autoseg.workspace import Workspace

# What a model folder keeps of run.json, beside the weights of each fold.
TRAINING = (
    "method", "architecture", "settings", "steps", "steps_done", "time_budget", "seed", "precision", "deterministic",
    "processes", "device", "parameters", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class MemberSource:
    """What a member of the model is made of."""

    name: str
    trainer: str
    plans: Plans  # with the configuration as it was trained
    configuration: str
    architecture: str
    runs: dict[str, Run]  # fold -> run
    previous_stage: str | None = None
    in_ensemble: bool = True
    plugin_source: Path | None = None  # the architecture's file, if it is not installed

    @classmethod
    def of(cls, name: str, experiment: Experiment, workspace: Workspace) -> MemberSource:
        """Return the member that an experiment becomes."""
        plans = experiment.plans
        found = find("architecture", plans.configuration(experiment.configuration).architecture, workspace.root)
        return cls(
            name=name,
            trainer=experiment.trainer,
            plans=plans,
            configuration=experiment.configuration,
            runs=experiment.chosen_runs,
            architecture=found.name,
            plugin_source=None if found.reference == found.name else found.path,
        )


def write_model(folder: Path, model: Model, sources: Sequence[MemberSource]) -> None:
    """Write `model` (its members and checksums are filled in here) with copies of plans and weights to `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _enough_space(folder.parent, sources)
    new = Path(tempfile.mkdtemp(prefix=".writing-model-", dir=folder.parent))
    try:
        members = tuple(_write_member(new, source) for source in sources)
        complete = model.model_copy(update={"members": members, "checksums": checksums(new)})
        write_json(new / MODEL_FILE, complete.model_dump(mode="json"), sealed=True)
        new.chmod(0o755)
        _replace(folder, new)
        remove_leftovers(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_member(root: Path, source: MemberSource) -> Member:
    relative = f"members/{source.name}"
    folder = root / relative
    folder.mkdir(parents=True)
    source.plans.write(folder / "plans.json")
    folds = {}
    for fold, run in source.runs.items():
        folds[fold] = f"{relative}/fold_{fold}.safetensors"
        shutil.copyfile(run.weights, root / folds[fold])
        run.check_weights(root / folds[fold])
        write_json((root / folds[fold]).with_suffix(".json"), _training_of(run), sealed=True)
    plugin = None
    if source.plugin_source is not None:
        plugin = f"{relative}/{source.plugin_source.name}"
        shutil.copyfile(source.plugin_source, root / plugin)
    return Member(
        name=source.name,
        plans_file=f"{relative}/plans.json",
        configuration=source.configuration,
        architecture=source.architecture,
        trainer=source.trainer,
        folds=folds,
        mirror_axes=next(iter(source.runs.values())).mirror_axes,
        previous_stage=source.previous_stage,
        in_ensemble=source.in_ensemble,
        plugin_source=plugin,
    )


def _training_of(run: Run) -> dict[str, Any]:
    """Return how a fold was trained: resolved settings with their origins, seed, versions; no names of cases."""
    return {name: run.record[name] for name in TRAINING if name in run.record}


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`; if the second step fails, the old folder comes back."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=".replaced-model-", dir=folder.parent))
    os.replace(folder, old / folder.name)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old / folder.name, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _enough_space(folder: Path, sources: Sequence[MemberSource]) -> None:
    needed = sum(run.weights.stat().st_size for source in sources for run in source.runs.values())
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise UserError(
            f"{needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free",
            where=folder,
            mend="free some space",
        )
