"""Finished models as teachers: the networks of a run, of all folds of an experiment, or of a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.inference.members import LoadedMember, load_members
from autoseg.model_folder import MODEL_FILE, read_model
from autoseg.plans import Configuration, Plans
from autoseg.plugins import build_network
from autoseg.training.checkpoint import WEIGHTS_FILE, load_weights
from autoseg.training.log import RUN_FILE, read_run
from autoseg.training.run import PLANS_FILE, is_finished


def load_teachers(
    source: Path, pupil: Configuration, device: torch.device, *, workspace_root: Path | None = None
) -> list[nn.Module]:
    """Return the networks found in `source`, in evaluation mode, without gradients; one per fold.

    Those of a model folder that see other data than `pupil` are left out. A UserError tells if none is left, or if a
    network does not fit the pupil's data.
    """
    if (source / MODEL_FILE).is_file():
        members = load_members(source, read_model(source), device=device)
        found = [(member.configuration, n) for member in members for n in member.networks if _sees(member, pupil)]
    else:
        runs = [source] if (source / RUN_FILE).is_file() else sorted(source.glob("fold_*"))
        found = [_load_run(run, workspace_root) for run in runs if is_finished(run)]
    if not found:
        raise UserError(
            "there is no finished network to learn from",
            where=source,
            mend="train the teacher first, or give the run, experiment or model folder: --set teacher=FOLDER",
        )
    for configuration, network in found:
        _check_fit(configuration, pupil, source)
        network.to(device).eval().requires_grad_(False)
    return [network for _, network in found]


def _load_run(folder: Path, workspace_root: Path | None) -> tuple[Configuration, nn.Module]:
    configuration = Plans.read(folder / PLANS_FILE, editable=False).configuration(read_run(folder)["configuration"])
    network = build_network(configuration.architecture, configuration.network, workspace_root)
    network.load_state_dict(load_weights(folder / WEIGHTS_FILE))
    return configuration, network


def _sees(member: LoadedMember, pupil: Configuration) -> bool:
    return member.configuration.data_identifier == pupil.data_identifier and member.configuration.dims == pupil.dims


def _check_fit(configuration: Configuration, pupil: Configuration, source: Path) -> None:
    for name in ("data_identifier", "dims"):
        if getattr(configuration, name) != getattr(pupil, name):
            raise UserError(
                f"the teacher has {name} {getattr(configuration, name)!r}, this run {getattr(pupil, name)!r}",
                where=source,
            )
    theirs, ours = configuration.network, pupil.network
    if (theirs.in_channels, theirs.num_outputs) != (ours.in_channels, ours.num_outputs):
        raise UserError("the teacher has other channels or labels than this run", where=source)
