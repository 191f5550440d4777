"""What the previous stage of a cascade predicted for each training case, out of fold, as input of the next stage.

Deviation from nnU-Net: the previous stage's label map is taken on the original grid and resampled as labels are, in
training exactly as in prediction; nnU-Net resamples the logits to the preprocessed grid in training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from autoseg.errors import UserError
from autoseg.inference import previous_stage_label
from autoseg.plans import Configuration, Plans
from autoseg.raw import Dataset, read_label, told
from autoseg.store import CaseStore
from autoseg.training.log import RUN_FILE, is_trained, read_run
from autoseg.training.validation import validated_file
from autoseg.workspace import Workspace

logger = logging.getLogger("autoseg.training")


def ensure_previous_stage(
    dataset: Dataset,
    plans: Plans,
    configuration: Configuration,
    store: CaseStore,
    workspace: Workspace,
    trainers: Sequence[str],
) -> str:
    """Put the previous stage's out-of-fold label maps into the store; returns the name that they are kept under.

    Its runs are those under the first of the names `trainers` that has any; the last is the method.
    """
    stage = configuration.previous_stage
    assert stage is not None
    folders = [workspace.experiment_folder(dataset.name, trainer, plans.plans_name, stage) for trainer in trainers]
    experiment = next((folder for folder in folders if folder.is_dir()), folders[-1])
    predictions = _out_of_fold(experiment, dataset.file_ending)
    name, asked = experiment.name, ("--trainer", trainers[-1], "--plans", plans.plans_name)
    for case in dataset.cases:
        if case.id not in predictions:
            raise UserError(
                f"the previous stage {stage} has no prediction for training case {case.id}",
                where=experiment,
                mend=f"train it first: {told('train', dataset, workspace, stage, 'cv', *asked)}",
            )
        marker = store.read(case.id)
        if store.has_previous_stage(case.id, name) and not _newer(predictions[case.id], store, case.id, name):
            continue
        label, _ = read_label(predictions[case.id])
        internal = dataset.labels.to_internal(label, str(predictions[case.id]))
        store.add_previous_stage(case.id, previous_stage_label(internal, marker.properties, plans, configuration), name)
    return name


def _out_of_fold(experiment: Path, file_ending: str) -> dict[str, Path]:
    """Return the validated label map of every case; fold "all" counts only where no other fold has the case."""
    found: dict[str, Path] = {}
    folders = sorted(experiment.glob("fold_*"), key=lambda folder: folder.name == "fold_all")
    for folder in folders:
        if not (folder / RUN_FILE).is_file() or not is_trained(read_run(folder)):
            continue
        for case in read_run(folder)["validation_cases"]:
            path = validated_file(folder, case, file_ending)
            if path.exists():
                found.setdefault(case, path)
    return found


def _newer(prediction: Path, store: CaseStore, case: str, name: str) -> bool:
    from autoseg.store.layout import previous_stage_file

    return prediction.stat().st_mtime_ns > previous_stage_file(store.folder, name, case).stat().st_mtime_ns
