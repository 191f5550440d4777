"""`train`: folds of one configuration, one after the other, within one time budget."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.devices import choose_device
from autoseg.errors import UserError
from autoseg.preprocessing.agreement import check_agreement
from autoseg.raw import Dataset, make_splits, open_dataset, split_of, told
from autoseg.store import CaseStore
from autoseg.training.asked import (
    check_patches,
    check_repeatable,
    checked_name,
    checked_seed,
    choose_labelled,
    configure,
    read_plans,
)
from autoseg.training.cascade import ensure_previous_stage
from autoseg.training.completeness import is_complete
from autoseg.training.context import RunContext, tell_left_out
from autoseg.training.earlier_run import comes_back, is_to_be_replaced, may_come_back, set_aside
from autoseg.training.folds import parse_folds
from autoseg.training.identity import identity
from autoseg.training.log import is_untrained
from autoseg.training.repeating import PRETRAIN, TRAIN, origin
from autoseg.training.resolving import AskedSettings
from autoseg.training.run import RunOptions, carry_out
from autoseg.training.run_lock import alone_in
from autoseg.training.settings import Setting
from autoseg.training.spreading import spread_folds
from autoseg.training.trainer import Trainer
from autoseg.workers import available_cores
from autoseg.workspace import Workspace

logger = logging.getLogger("autoseg.training")


def train(
    dataset: str | Path | Dataset,
    configuration: str,
    folds: str = "cv",
    *,
    trainer: str = "supervised",
    plans_name: str = "auto",
    architecture: str | None = None,
    pretrained: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    labelled: int | None = None,
    time_budget: float | None = None,
    device: str = "auto",
    processes: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    restart: bool = False,
    workers: int | None = None,
    workspace: str | Path | Workspace | None = None,
    name: str | None = None,
    started: float | None = None,
    training_seconds: float | None = None,
) -> list[Path]:
    """Train folds of a configuration; returns the run folders.

    `folds`: "0", "0,2", "0-4", "cv" (every fold) or "all" (one run on every case). `time_budget` in seconds covers the
    whole call and is shared equally among its runs. `labelled`: only so many training cases keep their labels, chosen
    by seed; the others count as unlabelled. Finished runs are left as they are and stopped ones go on, unless
    `restart`; a run of other settings, seed or data in the same place is a UserError. `name` keeps the runs under that
    name instead of the trainer's, so that several can stand side by side. With `deterministic` the same seed gives the
    same bits; it excludes a time budget. `training_seconds` end each run instead of its steps, by the clock of training
    alone (`training.clock`); set-up and validation come on top, and the recipe is that of the steps all the same.
    `started`: the `time.monotonic()` from which the budget counts, if not from this call.
    `device` may name several, "cuda:0,cuda:1": then the folds are spread over them, one process each. Raises UserError
    for wrong use, Interrupted after Ctrl-C or SIGTERM.
    """
    arguments = dict(locals())
    return _Training(**arguments).run(needs_labels=True)


def pretrain(
    dataset: str | Path | Dataset,
    configuration: str,
    *,
    trainer: str = "masked_autoencoder",
    plans_name: str = "auto",
    architecture: str | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    time_budget: float | None = None,
    device: str = "auto",
    processes: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    restart: bool = False,
    workers: int | None = None,
    workspace: str | Path | Workspace | None = None,
    name: str | None = None,
    started: float | None = None,
) -> list[Path]:
    """Train a method that needs no labels on every image of a data set; returns its run folder, for `pretrained`."""
    arguments = dict(locals())
    return _Training(**arguments, folds="all", pretrained=None, labelled=None).run(needs_labels=False)


class _Training:
    """Resolves what was asked for, once, and carries out one run per fold."""

    def __init__(
        self, *, dataset: str | Path | Dataset, configuration: str, folds: str, trainer: str, plans_name: str,
        architecture: str | None, pretrained: Path | None, settings: Mapping[str, Any] | None, recipe: Path | None,
        labelled: int | None, time_budget: float | None, device: str, processes: int, seed: int, deterministic: bool,
        restart: bool, workers: int | None, workspace: str | Path | Workspace | None, name: str | None,
        started: float | None = None, training_seconds: float | None = None,
    ):  # fmt: skip
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        self.started = time.monotonic() if started is None else started
        self.seed = checked_seed(seed)
        self.workspace = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
        self.dataset: Dataset = open_dataset(dataset, self.workspace)
        self.plans = read_plans(self.dataset, plans_name, self.workspace)
        named = {"dataset": self.dataset, "workspace": self.workspace}
        self.configuration = configure(self.plans, configuration, architecture, **named)
        self.found = plugins.find("trainer", trainer, self.workspace.root, data=self.dataset.folder)
        self.trainer_class: type[Trainer] = plugins.load("trainer", trainer, self.workspace.root)
        self.devices = [choose_device(each) for each in device.split(",")]
        self.device = self.devices[0]
        self.asked = AskedSettings(
            self.trainer_class, self.configuration, settings or {}, recipe,
            root=self.workspace.root, device=self.device,
        )  # fmt: skip
        self.settings = self.asked.untimed
        check_patches(self.configuration, self.asked.batch_size, self.device, plans_name=plans_name, **named)
        self.processes, self.deterministic, self.restart = processes, deterministic, restart
        self.name = None if name is None else checked_name(name)
        check_repeatable(deterministic=deterministic, seconds=training_seconds if time_budget is None else time_budget)
        self.folds_text, self.labelled, self.time_budget, self.pretrained = folds, labelled, time_budget, pretrained
        self.training_seconds = training_seconds
        self.threads = max(1, min(workers if workers is not None else available_cores(), 16))

    def run(self, *, needs_labels: bool) -> list[Path]:
        """Carry out the runs."""
        if self.trainer_class.needs_labels != needs_labels:
            raise UserError(f"trainer {self.found.name!r} is run by `autoseg {self.command}`")
        contexts = self.contexts()
        tell_left_out(contexts)
        share = None if self.time_budget is None else self.time_budget / len(contexts)
        with alone_in(context.folder for context in contexts):
            runs = [(context, *self._asked(context, share)) for context in contexts]
            spread = len(self.devices) > 1 and len(contexts) > 1
            if not spread:
                with set_aside([context.folder for context, _, replaces in runs if replaces]):
                    self._train_here(runs)
        if spread:  # each of the processes holds its own folders
            self._spread(contexts)
        return [context.folder for context in contexts]

    def _train_here(self, runs: Sequence[tuple[RunContext, Mapping[str, Setting], bool]]) -> None:
        """Carry out the runs one after the other."""
        if len(self.devices) > 1:
            logger.warning("one run takes one device: %s; --processes trains one fold on several", self.device)
        done = {context.fold: is_complete(context.folder) for context, *_ in runs}
        share = None if all(done.values()) else self._share(len(runs))
        for context, settings, _ in runs:
            if done[context.fold]:
                logger.info("fold %s is finished already: %s", context.fold, context.folder)
            else:
                carry_out(self.trainer_class, context, settings, self._options(share))

    def _share(self, runs: int) -> float | None:
        """Return the seconds of each of the runs: what the set-up of the whole call, which counts, too, has left."""
        if self.time_budget is None:
            return None
        spent = time.monotonic() - self.started
        if spent >= self.time_budget:
            raise UserError(
                f"the time budget of {self.time_budget:.0f} s was over before training began: "
                f"the start took {spent:.0f} s",
                where="--time-budget",
                mend=f"give more than {spent:.0f} s and the time to train, or start it when the machine is less busy",
            )
        return (self.time_budget - spent) / runs

    def contexts(self) -> list[RunContext]:
        """Return what each of the runs is about; nothing is written but a cascade's input."""
        splits = make_splits(self.dataset, workspace=self.workspace)
        folds = parse_folds(self.folds_text, len(splits))
        store = self._open_store()
        previous = None
        if self.configuration.previous_stage is not None:
            names = list(dict.fromkeys([self.experiment_trainer, self.found.name]))
            previous = ensure_previous_stage(self.dataset, self.plans, self.configuration, store, self.workspace, names)
        return [self._context(fold, splits, store, previous) for fold in folds]

    def _spread(self, contexts: list[RunContext]) -> None:
        """Carry out the runs in one process per device."""
        if self.processes > 1:
            raise UserError("folds are spread over devices, or one fold over processes, not both", where="--device")
        arguments = {**self.arguments, "workspace": self.workspace}
        spread_folds(train, arguments, [context.fold for context in contexts], [str(each) for each in self.devices])

    def _asked(self, context: RunContext, seconds: float | None) -> tuple[dict[str, Setting], bool]:
        """Return the settings of a run, and whether it is to replace another one, which stays as it is until then."""
        lying = None if self.restart else may_come_back(context.folder)
        if lying is not None:  # its recipe may be another one than that of the run which was to replace it
            settings, asked = self._identified(context, seconds, lying)
            if comes_back(context.folder, asked):
                return settings, False
        anew = self.restart or is_untrained(context.folder)
        settings, asked = self._identified(context, seconds, None if anew else context.folder)
        return settings, is_to_be_replaced(context.folder, asked, anew=anew)

    def _identified(
        self, context: RunContext, seconds: float | None, kept: Path | None
    ) -> tuple[dict[str, Setting], dict[str, Any]]:
        """Return the settings and the identity of the run asked for, where the folder `kept` may hold that run."""
        settings = self.asked.of_run(seconds, kept)
        trainer = self.trainer_class(context, settings)
        return settings, identity(trainer, self.found.reference, self.pretrained, kept=kept)

    @property
    def command(self) -> str:
        """Return the command that runs the trainer."""
        return TRAIN if self.trainer_class.needs_labels else PRETRAIN

    @property
    def experiment_trainer(self) -> str:
        """Return the name under which runs are kept: the trainer, and the architecture where it is not the plan's."""
        if self.name is not None:
            return self.name
        planned = self.plans.configurations[self.configuration.name].architecture
        architecture = self.configuration.architecture
        return self.found.name if architecture == planned else f"{self.found.name}-{Path(architecture).stem}"

    def _open_store(self) -> CaseStore:
        folder = self.workspace.store_folder(self.dataset.name, self.configuration.data_identifier)
        if not folder.is_dir():
            words = ("--plans-name", self.plans.plans_name, "-c", self.configuration.name)
            raise UserError(
                f"{self.dataset.name} is not preprocessed for {self.configuration.name}",
                where=folder,
                mend="run: " + told("plan-and-preprocess", self.dataset, self.workspace, "--keep-plans", *words),
            )
        store = CaseStore(folder)
        check_agreement(store, self.dataset, self.plans, self.configuration, self.workspace)
        return store

    def _context(
        self, fold: str, splits: list[dict[str, list[str]]], store: CaseStore, previous: str | None
    ) -> RunContext:
        ids = [case.id for case in self.dataset.cases]
        split = split_of(splits, ids, fold)
        stored = set(store.cases)
        left_out = tuple(case for case in (*split["train"], *split["val"]) if case not in stored)
        training = tuple(case for case in split["train"] if case in stored)
        unlabelled = tuple(case.id for case in self.dataset.unlabelled if case.id in stored)
        if self.labelled is not None:
            training, rest = choose_labelled(training, self.labelled, self.seed)
            unlabelled = (*rest, *unlabelled)
        if not training:
            raise UserError(f"fold {fold} has no training case in the preprocessed store", where=store.folder)
        folder = self.workspace.run_folder(
            self.dataset.name, self.experiment_trainer, self.plans.plans_name, self.configuration.name, fold
        )
        return RunContext(
            dataset=self.dataset, plans=self.plans, configuration=self.configuration, store=store,
            training_cases=training, validation_cases=tuple(case for case in split["val"] if case in stored),
            unlabelled_cases=unlabelled, fold=fold, folder=folder, device=self.device, seed=self.seed,
            workspace=self.workspace, previous_stage=previous, processes=self.processes,
            pretrained=self.pretrained is not None, left_out_cases=tuple(sorted(set(left_out))),
        )  # fmt: skip

    def _options(self, seconds: float | None) -> RunOptions:
        return RunOptions(
            trainer_name=self.experiment_trainer,
            trainer_reference=self.found.reference,
            seconds=seconds,
            training_seconds=self.training_seconds,
            deterministic=self.deterministic,
            pretrained=self.pretrained,
            labelled=self.labelled,
            threads=self.threads,
            origin=origin(self.command, self.dataset, self.workspace),
        )
