"""What a user names for a training: plans, another architecture, a name for the runs, how many cases keep labels."""

from __future__ import annotations

import re
from numbers import Integral

import torch

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.network_room import check_patch
from autoseg.plans import Configuration, Plans
from autoseg.randomness import generator
from autoseg.raw import Dataset, told
from autoseg.workspace import Workspace

HIGHEST_SEED = 2**32 - 1  # what every library takes that is seeded


def read_plans(dataset: Dataset, plans_name: str, workspace: Workspace) -> Plans:
    """Return plans of a data set by their name."""
    path = workspace.plans_file(dataset.name, plans_name)
    if not path.is_file():
        known = sorted(other.stem for other in path.parent.glob("*.json"))
        raise UserError(
            f"there are no plans {plans_name!r} for {dataset.name}; known: {', '.join(known) or 'none'}",
            where=path,
            mend=f"run: {told('plan-and-preprocess', dataset, workspace)}, or choose with --plans",
        )
    return Plans.read(path)


def configure(
    plans: Plans, name: str, architecture: str | None, *, dataset: Dataset, workspace: Workspace
) -> Configuration:
    """Return a configuration of the plans, with another architecture where one is asked for."""
    configuration = plans.configuration(name)
    planned = architecture is None or architecture == configuration.architecture
    kind = plugins.load("architecture", configuration.architecture if planned else architecture, workspace.root)
    if configuration.dims not in kind.dims:
        raise plugins.no_form(configuration.architecture if planned else architecture, configuration.dims)
    # The planned network's own options mean nothing to another one.
    given = configuration.network.options if planned else {}
    options = kind.options_for(given, plans.channel_names, dataset.description)
    if planned:
        return configuration
    network = kind.adapt_spec(configuration.network.model_copy(update={"options": options}))
    multiple = kind.patch_multiple(network)
    if any(size % m for size, m in zip(configuration.patch_size, multiple, strict=True)):
        raise UserError(
            f"architecture {architecture!r} takes patches that are multiples of {multiple}, the plan's patch is "
            f"{configuration.patch_size}",
            mend="plan for it: " + told("plan-and-preprocess", dataset, workspace, "--architecture", architecture),
        )
    reference = plugins.find("architecture", architecture, workspace.root).reference
    return configuration.model_copy(update={"architecture": reference, "network": network})


def check_patches(
    configuration: Configuration,
    batch_size: int,
    device: torch.device,
    *,
    plans_name: str,
    dataset: Dataset,
    workspace: Workspace,
) -> None:
    """Raise UserError where the patches of a batch do not fit into the memory, or one does not fit the network."""
    kind = plugins.load("architecture", configuration.architecture, workspace.root)
    # A GPU has memory of its own for a batch and its logits; in main memory one patch is predicted in validation.
    at_once = batch_size if device.type == "cpu" else 1
    check_patch(configuration, kind, where=workspace.plans_file(dataset.name, plans_name), batch_size=at_once)


def check_repeatable(*, deterministic: bool, seconds: float | None) -> None:
    """Raise UserError where bits that do not change are asked for of a run that the clock ends."""
    if deterministic and seconds is not None:
        raise UserError(
            "with a time budget the clock decides what is trained, so that no run is like another",
            where="--deterministic",
            mend="give the number of steps instead: --set steps=500",
        )


def checked_name(name: str) -> str:
    """Return the name under which runs are kept, if it can be that of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name!r} cannot be the name of a folder", mend="use letters, digits, '_', '-' and '.'")
    return name


def checked_seed(seed: int) -> int:
    """Return the seed, if it is one that torch and numpy take."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed <= HIGHEST_SEED:
        raise UserError(f"--seed {seed} is no integer within 0 and {HIGHEST_SEED}", mend="use such as --seed 1")
    return int(seed)


def choose_labelled(cases: tuple[str, ...], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (`count` cases that keep their labels, the others), chosen by seed from the sorted names."""
    ordered = sorted(cases)
    if not 1 <= count <= len(ordered):
        raise UserError(f"--labelled {count} is not within 1 and {len(ordered)}, the number of training cases")
    order = generator(seed, "labelled cases").permutation(len(ordered))
    chosen = {ordered[index] for index in order[:count]}
    return tuple(c for c in ordered if c in chosen), tuple(c for c in ordered if c not in chosen)
