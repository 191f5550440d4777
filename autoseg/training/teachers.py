"""Finished models as teachers: the networks of a run, of all folds of an experiment, or of a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autoseg import plugins
from autoseg.errors import InputsGone, UserError
from autoseg.inference.members import load_members
from autoseg.labels import Labels
from autoseg.model_folder import MODEL_FILE, read_member_plans, read_model
from autoseg.network_room import takes_patch
from autoseg.plans import Configuration, Plans, parse
from autoseg.training.checkpoint import WEIGHTS_FILE, load_weights
from autoseg.training.context import RunContext
from autoseg.training.log import RUN_FILE, read_run
from autoseg.training.run import PLANS_FILE, is_finished
from autoseg.training.same_data import Sight, difference


@dataclass(frozen=True)
class Teacher:
    """One trained network: what it sees and gives, and where its weights are."""

    sight: Sight
    weights: Path
    member: str | None = None  # of a model folder, which it is in

    @property
    def configuration(self) -> Configuration:
        """Return the configuration that it was trained by."""
        return self.sight.configuration


def find_teachers(source: Path, context: RunContext) -> list[Teacher]:
    """Return the trained networks in `source`, one per fold, that see and give what the run of `context` does.

    A model folder may have others, which are left out. Raises UserError if none is left, naming the difference.
    """
    found = _of_model(source) if (source / MODEL_FILE).is_file() else _of_runs(source)
    if not found:
        raise InputsGone(
            "there is no finished network to learn from",
            where=source,
            mend="train the teacher first, or give the run, experiment or model folder: --set teacher=FOLDER",
        )
    pupil = Sight(context.plans, context.configuration, context.dataset.labels)
    differences = [difference(teacher.sight, pupil) for teacher in found]
    if all(differences) or (any(differences) and found[0].member is None):
        field, theirs, ours = next(filter(None, differences))
        raise UserError(
            f"the teacher does not see or give what this run does: its {field} is {theirs}, that of this run {ours}",
            where=source,
            mend=f"choose a teacher of the same {field}, or {_own_teacher(context)}",
        )
    return [teacher for teacher, fault in zip(found, differences, strict=True) if not fault]


def load_teachers(source: Path, context: RunContext) -> list[nn.Module]:
    """Return the networks of `find_teachers`, in evaluation mode, without gradients, on the device of the run."""
    teachers = find_teachers(source, context)
    for teacher in teachers:
        _check_patch(teacher, context, source)
    if teachers[0].member is None:
        networks = [_load_run(teacher, context) for teacher in teachers]
    else:
        names = {teacher.member for teacher in teachers}
        members = load_members(source, read_model(source), device=context.device)
        networks = [network for one in members if one.member.name in names for network in one.networks]
    for network in networks:
        network.to(context.device).eval().requires_grad_(False)
    return networks


def _of_runs(source: Path) -> list[Teacher]:
    folders = [source] if (source / RUN_FILE).is_file() else sorted(source.glob("fold_*"))
    return [_of_run(folder) for folder in folders if is_finished(folder)]


def _of_run(folder: Path) -> Teacher:
    record, plans = read_run(folder), Plans.read(folder / PLANS_FILE, editable=False)
    known: Any = record.get("labels")  # earlier versions recorded none
    labels = None if known is None else parse(Labels, known, folder / RUN_FILE, within="labels")
    return Teacher(Sight(plans, plans.configuration(record["configuration"]), labels), folder / WEIGHTS_FILE)


def _of_model(source: Path) -> list[Teacher]:
    model = read_model(source, verify=False)  # loading does
    found = []
    for member in model.members:
        plans = read_member_plans(source, member)
        sight = Sight(plans, plans.configuration(member.configuration), model.labels)
        found += [Teacher(sight, source / file, member.name) for file in member.folds.values()]
    return found


def _check_patch(teacher: Teacher, context: RunContext, source: Path) -> None:
    """Raise UserError where the network of a teacher does not take the patches of the run."""
    name, spec = teacher.configuration.architecture, teacher.configuration.network
    patch = context.configuration.patch_size
    if patch == spec.patch_size:
        return
    if teacher.member is None:
        kind = plugins.load("architecture", name, context.workspace_root)
    elif ".py" not in name:  # otherwise loading tells
        kind = plugins.load_installed("architecture", name)
    else:
        return
    if not takes_patch(kind, spec, patch):
        raise UserError(
            f"the teacher, {name} for patches of {spec.patch_size}, does not take those of this run, {patch}",
            where=source,
            mend=f"plan this run for multiples of {kind.patch_multiple(spec)} or the same patch, choose another "
            f"teacher, or {_own_teacher(context)}",
        )


def _own_teacher(context: RunContext) -> str:
    command = context.told("train", context.configuration.name, "cv", "--plans", context.plans.plans_name)
    return f"train one on the plans of this run: {command}"


def _load_run(teacher: Teacher, context: RunContext) -> nn.Module:
    configuration = teacher.configuration
    network = plugins.build_network(configuration.architecture, configuration.network, context.workspace_root)
    network.load_state_dict(load_weights(teacher.weights))
    return network
