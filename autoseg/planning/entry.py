"""The stage: find the planner, let it plan, write the plans."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.fingerprinting import Fingerprint
from autoseg.fingerprinting import fingerprint as measure
from autoseg.planning.planner import Planner
from autoseg.planning.resources import Resources
from autoseg.plans import Plans
from autoseg.raw import Dataset, open_dataset, place_of
from autoseg.workspace import Workspace

PLANS_NAME = re.compile(r"\w[\w.-]*")

log = logging.getLogger(__name__)


def plan(
    dataset: str | Path | Dataset,
    fingerprint: Fingerprint | None = None,
    workspace: str | Path | Workspace | None = None,
    *,
    planner: str = "auto",
    architecture: str | None = None,
    gpu_memory: float | None = None,
    time_budget: float | None = None,
    configurations: Sequence[str] | None = None,
    plans_name: str | None = None,
    device: str = "auto",
    network_options: Mapping[str, Any] | None = None,
) -> Plans:
    """Plan a data set and write the plans into the workspace; returns them.

    The data set is given as for `open_dataset`, or open already; the workspace by its folder, None is the default one.
    Without a fingerprint the one in the workspace is read, or measured if there is none for these data.
    `gpu_memory` in GiB, `time_budget` in seconds: the training time of one configuration's whole cross-validation.
    The plans are named after the planner unless `plans_name` is given. `network_options` are the architecture's own,
    such as {"size": "L"}.
    """
    if plans_name is not None and not PLANS_NAME.fullmatch(plans_name):
        raise UserError(f"{plans_name!r} cannot be a file name", where="plans-name", mend="use letters, digits, _ - .")
    workspace = place_of(workspace)
    dataset = open_dataset(dataset, workspace)
    found = plugins.find("planner", planner, workspace.root)
    if architecture is not None:
        architecture = _lasting_reference(architecture, workspace)
    kind = plugins.load("planner", planner, workspace.root)
    instance: Planner = kind(
        name=found.name,
        plans_name=plans_name,
        architecture=architecture,
        wanted=configurations,
        workspace=workspace.root,
        network_options=network_options,
    )
    resources = Resources.detect(device, gpu_memory=gpu_memory, time_budget=time_budget)
    if fingerprint is None:
        fingerprint = measure(dataset, workspace)
    plans = instance.plan(fingerprint, resources, dataset)
    target = workspace.plans_file(fingerprint.dataset_name, plans.plans_name)
    plans.write(target)
    log.info("plans written to %s", target)
    return plans


def _lasting_reference(architecture: str, workspace: Workspace) -> str:
    """Return what finds the architecture again from any folder: its name, or absolute file and name."""
    found = plugins.find("architecture", architecture, workspace.root)
    return found.name if found.reference == found.name else f"{found.path.resolve()}:{found.name}"
