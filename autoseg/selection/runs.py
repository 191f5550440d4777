"""Finished runs of a data set, grouped into experiments (trainer, plans, configuration)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.storage import file_hash, read_json
from autoseg.training.log import check_weights, is_trained, read_run
from autoseg.training.repeating import mend_by_training
from autoseg.workspace import Workspace

CONFIGURATION_ORDER = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
RUN_FILE = "run.json"
PLANS_FILE = "plans.json"
WEIGHTS_FILE = "weights.safetensors"
VALIDATION_FOLDER = "validation"
ALL = "all"  # the fold that trains, and validates, on every training case


@dataclass(frozen=True)
class Run:
    """One finished fold: its folder, what run.json says, and the scores of its validation cases."""

    folder: Path
    fold: str
    record: dict[str, Any]
    scores: dict[str, dict[str, Any]]  # case -> name -> metric -> value
    label_maps: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256; earlier versions noted none

    @property
    def weights(self) -> Path:
        """Return the file of the network's weights."""
        return self.folder / WEIGHTS_FILE

    def check_weights(self, copy: Path | None = None) -> None:
        """Raise UserError if the weights, or what was copied of them, are not those that training wrote."""
        try:
            check_weights(self.weights, self.record, copy)
        except UserError as error:
            raise UserError(error.what, where=error.where, mend=_mend(self.folder, self.record)) from None

    def read_plans(self) -> Plans:
        """Return the plans as the run used them; a UserError for damaged ones names the command that mends them."""
        try:
            return Plans.read(self.folder / PLANS_FILE, editable=False)
        except UserError as error:
            raise UserError(error.what, where=error.where, mend=_mend(self.folder, self.record)) from None

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Return the axes of the patch that may be mirrored when predicting."""
        return tuple(self.record.get("mirror_axes") or ())

    @property
    def step_size(self) -> float:
        """Return the distance of the tiles in the run's validation, as a share of the patch."""
        return float(self.record.get("validation_step_size") or 0.5)

    @property
    def previous_stage(self) -> str | None:
        """Return the name of the experiment that predicted the input of this cascade stage, or None."""
        return self.record.get("previous_stage")

    def label_map(self, case: str, file_ending: str) -> Path:
        """Return the file of the label map of a validation case; UserError if it is not as it was written."""
        path = self.folder / VALIDATION_FOLDER / f"{case}{file_ending}"
        noted = self.label_maps.get(path.name)
        if noted is not None and (not path.is_file() or file_hash(path) != noted):
            raise UserError(
                "missing, or not as validation wrote it",
                where=path,
                mend=f"call the same train command again, which validates the fold anew; "
                f"{_mend(self.folder, self.record)}",
            )
        return path


@dataclass(frozen=True)
class Experiment:
    """The finished folds of one trainer, plans and configuration."""

    trainer: str
    plans_name: str
    configuration: str
    runs: dict[str, Run]  # fold -> run

    @property
    def name(self) -> str:
        """Return trainer__plans__configuration."""
        return f"{self.trainer}__{self.plans_name}__{self.configuration}"

    @property
    def out_of_fold(self) -> bool:
        """Return whether the validated cases were not seen in training."""
        return any(fold != ALL for fold in self.runs)

    @property
    def chosen_runs(self) -> dict[str, Run]:
        """Return the numbered folds in order, or the fold "all" if there is nothing else."""
        numbered = sorted((fold for fold in self.runs if fold != ALL), key=lambda fold: (len(fold), fold))
        return {fold: self.runs[fold] for fold in numbered or self.runs}

    @cached_property
    def run_of_case(self) -> dict[str, Run]:
        """Return, for every validated case, the run that validated it; cases sorted."""
        found = {case: run for run in self.chosen_runs.values() for case in run.scores}
        return dict(sorted(found.items()))

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the pooled scores of all validated cases."""
        return {case: run.scores[case] for case, run in self.run_of_case.items()}

    @cached_property
    def plans(self) -> Plans:
        """Return the plans as the runs used them; folds with different networks are a UserError."""
        all_plans = {fold: run.read_plans() for fold, run in self.chosen_runs.items()}
        first = next(iter(all_plans.values()))
        for fold, plans in all_plans.items():
            if _network(plans, self.configuration) != _network(first, self.configuration):
                raise UserError(
                    f"fold {fold} has another network or other data than fold {next(iter(all_plans))}",
                    where=self.runs[fold].folder / PLANS_FILE,
                    mend="train all folds with the same plans and architecture, or use another plans name",
                )
        return first

    @property
    def order(self) -> tuple[Any, ...]:
        """Return the sort key: ties between candidates go to the earlier one."""
        known = self.configuration in CONFIGURATION_ORDER
        position = CONFIGURATION_ORDER.index(self.configuration) if known else len(CONFIGURATION_ORDER)
        return position, self.configuration, self.trainer, self.plans_name


def find_experiments(
    dataset_name: str,
    workspace: Workspace,
    *,
    configurations: Collection[str] | None = None,
    trainer: str | None = None,
    plans_name: str | None = None,
) -> tuple[list[Experiment], list[str]]:
    """Return the experiments with at least one finished run, in the order of ties, and notes on what was left out."""
    folder = workspace.results / dataset_name
    groups: dict[tuple[str, str, str], dict[str, Run]] = {}
    notes = []
    for file in sorted(folder.glob(f"*__*__*/fold_*/{RUN_FILE}")):
        record = read_run(file.parent)
        key = _key(record, file)
        if configurations is not None and key[2] not in configurations:
            continue
        if trainer not in (None, key[0]) or plans_name not in (None, key[1]):
            continue
        run, reason = _read_run(file.parent, record)
        if run is None:
            notes.append(f"{file.parent.parent.name}/{file.parent.name} is left out: {reason}")
        else:
            groups.setdefault(key, {})[run.fold] = run
    experiments = [Experiment(*key, runs) for key, runs in groups.items()]
    return sorted(experiments, key=lambda experiment: experiment.order), notes


def _key(record: dict[str, Any], file: Path) -> tuple[str, str, str]:
    fields = ("plans_name", "configuration", "fold")
    if any(field not in record for field in fields):
        mend = mend_by_training(file.parent, restart=True)
        raise UserError(f"the fields {', '.join(fields)} are needed", where=file, mend=mend)
    plans_name, configuration = str(record["plans_name"]), str(record["configuration"])
    return file.parent.parent.name.removesuffix(f"__{plans_name}__{configuration}"), plans_name, configuration


def _read_run(folder: Path, record: dict[str, Any]) -> tuple[Run | None, str]:
    if record.get("status") != "finished":
        return None, f"its status is {record.get('status')!r}; call the same train command again to finish it"
    if not is_trained(record):
        return None, "its time was over before the first step; call the same train command again, with more time"
    for name in (WEIGHTS_FILE, PLANS_FILE):
        if not (folder / name).is_file():
            return None, f"{name} is missing; to mend it, {_mend(folder, record)}"
    summary_file = folder / VALIDATION_FOLDER / "summary.json"
    if not summary_file.is_file():
        return None, "its validation cases were not scored"
    try:
        summary = read_json(summary_file)
    except UserError as error:
        raise UserError(error.what, where=error.where, mend=_mend(folder, record)) from None
    return Run(folder, str(record["fold"]), record, summary["cases"], summary.get("label_maps", {})), ""


def _mend(folder: Path, record: Mapping[str, Any]) -> str:
    """Return how a damaged run is mended: from its checkpoint, or by training anew where that is damaged, too."""
    from autoseg.training.checkpoint import is_sound_state  # it takes torch, and only a damaged run needs it

    return mend_by_training(folder, record, restart=not is_sound_state(folder))


def _network(plans: Plans, configuration: str) -> tuple[Any, ...]:
    planned = plans.configuration(configuration)
    return planned.architecture, planned.network, planned.spacing, planned.data_identifier
