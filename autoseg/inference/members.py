"""The members of a model folder as networks, ready on a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from autoseg.devices import lay_out_for_cpu
from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, Member, Model, read_member_plans
from autoseg.network_room import BYTES, check_patch, weight_bytes
from autoseg.plans import Configuration, NetworkSpec, Plans
from autoseg.plugins import build_network, load, load_installed

log = logging.getLogger(__name__)
FAR = 4  # times the size of a file of weights, which may be of 16 bits
WORTH_COUNTING = 2**28  # bytes of weights that are allocated in no time


@dataclass(frozen=True)
class LoadedMember:
    """One configuration of a model with the networks of its folds."""

    member: Member
    plans: Plans
    configuration: Configuration
    folds: tuple[str, ...]
    networks: tuple[nn.Module, ...]

    @property
    def preprocessing(self) -> tuple[str, str]:
        """Return what tells whether two members can share a preprocessed case."""
        return self.member.plans_file, self.configuration.data_identifier


def load_members(
    folder: Path,
    model: Model,
    *,
    device: torch.device,
    folds: Sequence[str | int] | None = None,
    network_options: Mapping[str, Any] | None = None,
    trust_plugins: bool = False,
) -> tuple[LoadedMember, ...]:
    """Return the members that take part, every previous stage before the member that needs it.

    `network_options` are put over the architecture's options of every member, as in UNet++'s "inference".
    """
    _check_references(folder, model)
    ordered: dict[str, LoadedMember] = {}
    for member in model.members:
        chain = []
        current: Member | None = member if member.in_ensemble else None
        while current is not None and current.name not in ordered:
            if current.name in (below.name for below in chain):
                raise UserError(f"members {sorted(m.name for m in chain)} are previous stages of one another")
            chain.append(current)
            current = model.member(current.previous_stage) if current.previous_stage else None
        for link in reversed(chain):
            ordered[link.name] = _load_member(
                folder, model, link, device=device, folds=folds, network_options=network_options or {},
                trust_plugins=trust_plugins,
            )  # fmt: skip
    return tuple(ordered.values())


def _check_references(folder: Path, model: Model) -> None:
    names = {member.name for member in model.members}
    for member in model.members:
        if member.previous_stage is not None and member.previous_stage not in names:
            raise UserError(f"member {member.name!r} needs {member.previous_stage!r}, which is missing", where=folder)
    if not any(member.in_ensemble for member in model.members):
        raise UserError("the model has no member that predicts", where=folder)


def _load_member(
    folder: Path,
    model: Model,
    member: Member,
    *,
    device: torch.device,
    folds: Sequence[str | int] | None,
    network_options: Mapping[str, Any],
    trust_plugins: bool,
) -> LoadedMember:
    plans = read_member_plans(folder, member)
    configuration = plans.configuration(member.configuration)
    _check_dimensions(folder, model, member, configuration)
    if configuration.network.num_outputs != model.labels.num_outputs:
        raise UserError(
            f"the network of member {member.name!r} has {configuration.network.num_outputs} outputs, "
            f"the labels need {model.labels.num_outputs}",
            where=folder,
        )
    reference = _architecture(folder, model, member, trust_plugins)
    installed = member.plugin_source is None
    options = {**configuration.network.options, **member.network_options, **network_options}
    spec = configuration.network.model_copy(update={"options": options})
    built = configuration.model_copy(update={"network": spec})
    check_patch(built, _kind(reference, installed=installed), where=folder / member.plans_file)
    chosen = _chosen_folds(folder, member, folds)
    files = [folder / member.folds[fold] for fold in chosen]
    networks = tuple(_load_network(reference, spec, file, device, installed=installed) for file in files)
    return LoadedMember(member, plans, configuration, chosen, networks)


def _check_dimensions(folder: Path, model: Model, member: Member, configuration: Configuration) -> None:
    if configuration.dims > model.dims_of_data:
        raise UserError(
            f"field dims_of_data is {model.dims_of_data}, but member {member.name!r} predicts in {configuration.dims}D",
            where=folder / MODEL_FILE,
            mend="correct the field, or make the model anew",
        )


def _architecture(folder: Path, model: Model, member: Member, trust_plugins: bool) -> str:
    """Return the reference of the architecture; code that came with the model runs only if it is trusted."""
    if member.plugin_source is None:
        if ".py" in member.architecture:
            raise UserError(
                f"member {member.name!r} names a file as its architecture: {member.architecture}",
                where=folder,
                mend="make the model folder again, so that the source is part of it",
            )
        return member.architecture
    source = folder / member.plugin_source
    if member.plugin_source not in model.checksums:
        raise UserError("the plug-in source has no checksum", where=source)
    if not trust_plugins:
        raise UserError(
            "the model comes with its own architecture source, which is not run without your consent",
            where=source,
            mend="read this file, then predict again with --trust-plugins",
        )
    log.warning("running the architecture source that came with the model: %s", source)
    return f"{source}:{member.architecture.rpartition(':')[2]}"


def _chosen_folds(folder: Path, member: Member, folds: Sequence[str | int] | None) -> tuple[str, ...]:
    if not folds:
        return tuple(member.folds)
    chosen = tuple(dict.fromkeys(str(fold) for fold in folds))
    unknown = [fold for fold in chosen if fold not in member.folds]
    if unknown:
        raise UserError(
            f"member {member.name!r} has no fold(s) {', '.join(unknown)}",
            where=folder,
            mend=f"choose among: {', '.join(member.folds)}",
        )
    return chosen


def _kind(reference: str, *, installed: bool) -> Any:
    return load_installed("architecture", reference) if installed else load("architecture", reference)


def _check_size(reference: str, spec: NetworkSpec, file: Path, *, installed: bool) -> None:
    """Refuse a network far larger than its file of weights before the minutes that building it takes."""
    there = file.stat().st_size
    if BYTES * spec.weights <= FAR * there + WORTH_COUNTING:
        return
    needed = weight_bytes(_kind(reference, installed=installed), spec)
    if needed is not None and needed > FAR * there:
        raise UserError(
            f"the weights do not fit architecture {reference!r}: by the plans they need {needed} bytes, the file has "
            f"{there}",
            where=file,
            mend="correct features, kernel_sizes and blocks in the plans of the model, or make the model anew",
        )


def _load_network(reference: str, spec: NetworkSpec, file: Path, device: torch.device, *, installed: bool) -> nn.Module:
    _check_size(reference, spec, file, installed=installed)
    network = build_network(reference, spec, installed=installed)
    try:
        network.load_state_dict(load_file(file))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the weights do not fit architecture {reference!r}: {str(error)[:300]}",
            where=file,
            mend="use the version of autoseg and of the plug-in that trained the model",
        ) from None
    if device.type == "cpu":
        lay_out_for_cpu(network, spec.dims)
    return network.to(device).eval()
