"""The plans of a trained model for another data set, so that its weights fit there: what fine-tuning starts from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.fingerprinting import Fingerprint
from autoseg.interop.names import checked_name
from autoseg.model_folder import MODEL_FILE, Model, read_member_plans, read_model
from autoseg.planning import rules
from autoseg.plans import Configuration, Plans
from autoseg.raw import Dataset
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


def move_plans(
    model_folder: Path | str, dataset: Dataset, fingerprint: Fingerprint, workspace: Workspace, plans_name: str
) -> Plans:
    """Write plans for `dataset` with the networks of a model into the workspace, and return them.

    Spacing, order of the axes, patch, batch, topology, kernels and features are the model's; channels, labels,
    normalisation, intensities and the folders of preprocessed data are those of the data set. Raises UserError for a
    model whose architecture is a plug-in, or whose members cannot stand in one file of plans.
    """
    checked_name(plans_name, "plans_name", "move_plans")
    folder = Path(model_folder)
    model = read_model(folder)
    old = _plans_of_members(folder, model)
    forward = list(old[0][1].transpose_forward)
    stores: dict[str, str] = {}  # configurations that shared preprocessed data share them again
    configurations = {}
    for configuration, _ in old:
        store = stores.setdefault(configuration.data_identifier, f"{plans_name}_{configuration.name}")
        configurations[configuration.name] = _moved(configuration, dataset, fingerprint, forward, store)
    plans = Plans(
        dataset_name=fingerprint.dataset_name,
        plans_name=plans_name,
        planner=old[0][1].planner,
        transpose_forward=old[0][1].transpose_forward,
        transpose_backward=old[0][1].transpose_backward,
        original_median_spacing=tuple(np.median(fingerprint.spacings, 0)[forward].tolist()),
        original_median_shape=tuple(np.median(fingerprint.shapes_after_crop, 0)[forward].tolist()),
        intensities=tuple(fingerprint.intensities),
        channel_names=tuple(fingerprint.channel_names),
        configurations=configurations,
        notes=(f"The networks, spacings and patches are those of a model of {model.dataset_name}.",),
    )
    target = workspace.plans_file(fingerprint.dataset_name, plans_name)
    plans.write(target)
    log.info("plans written to %s", target)
    return plans


def _plans_of_members(folder: Path, model: Model) -> list[tuple[Configuration, Plans]]:
    """Return the configuration and the plans of every member; all see the axes in one order."""
    found: list[tuple[Configuration, Plans]] = []
    for member in model.members:
        if member.plugin_source is not None:
            raise UserError(
                f"member {member.name!r} has an architecture that came with the model: {member.architecture!r}",
                where=folder / MODEL_FILE,
                mend="put its file into the workspace's folder of plug-ins and plan with --architecture",
            )
        plans = read_member_plans(folder, member)
        configuration = plans.configuration(member.configuration)
        for name in (member.architecture, configuration.architecture):  # which training will look for in any folder
            plugins.load_installed("architecture", name)
        found.append((configuration, plans))
    names = [configuration.name for configuration, _ in found]
    if len(set(names)) < len(names) or len({plans.transpose_forward for _, plans in found}) > 1:
        raise UserError(
            f"the members ({', '.join(names)}) were planned differently and do not go into one file of plans",
            where=folder / MODEL_FILE,
            mend="give a model of one configuration",
        )
    return found


def _moved(
    configuration: Configuration, dataset: Dataset, fingerprint: Fingerprint, forward: list[int], store: str
) -> Configuration:
    schemes, masks = rules.normalization(fingerprint.channel_names, fingerprint.median_relative_size)
    axes = forward[3 - configuration.dims :]  # a 2D configuration leaves the slices as they are
    median = rules.median_shape(
        [[spacing[axis] for axis in axes] for spacing in fingerprint.spacings],
        [[shape[axis] for axis in axes] for shape in fingerprint.shapes_after_crop],
        configuration.spacing,
    )
    inputs = len(fingerprint.channel_names)
    if configuration.previous_stage is not None:
        inputs += len(dataset.labels.foreground_values)
    network = {"in_channels": inputs, "num_outputs": dataset.labels.num_outputs}
    return configuration.model_copy(
        update={
            "median_shape": tuple(float(size) for size in median),
            "normalization": schemes,
            "use_mask": masks,
            "data_identifier": store,
            "network": configuration.network.model_copy(update=network),
        }
    )
