"""What a run is about: the data, the plan, the fold, the place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.plans import Configuration, Plans
from autoseg.raw import Case, Dataset, told
from autoseg.store import CaseStore
from autoseg.workspace import Workspace

logger = logging.getLogger("autoseg.training")


@dataclass(frozen=True)
class RunContext:
    """Everything a trainer may know of its run; it does not change while the run lasts."""

    dataset: Dataset
    plans: Plans
    configuration: Configuration
    store: CaseStore
    training_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    unlabelled_cases: tuple[str, ...]
    fold: str
    folder: Path
    device: torch.device
    seed: int = 0
    workspace: Workspace | None = None
    previous_stage: str | None = None  # name of the stored label maps of the previous stage, for a cascade
    rank: int = 0  # this process among `processes`
    processes: int = 1
    pretrained: bool = False  # the run starts from given weights
    left_out_cases: tuple[str, ...] = ()  # of the fold, which are not in the store

    @property
    def workspace_root(self) -> Path | None:
        """Return the folder where loose plug-ins are looked for."""
        return None if self.workspace is None else self.workspace.root

    def case(self, case_id: str) -> Case:
        """Return the raw case of an id."""
        return next(case for case in (*self.dataset.cases, *self.dataset.unlabelled) if case.id == case_id)

    def told(self, command: str, *more: object) -> str:
        """Return a command on the data set as a user can type it, with `more` arguments."""
        return told(command, self.dataset, self.workspace or Workspace.open(), *more)


def tell_left_out(contexts: Sequence[RunContext]) -> None:
    """Name, once for all folds, the cases that the store lacks: those of which preprocessing failed."""
    names = sorted({case for context in contexts for case in context.left_out_cases})
    if names:
        cases = contexts[0].dataset.cases
        logger.warning(
            "%d of %d case(s) are left out of training and validation, since they are not preprocessed: %s\n"
            "To mend it: run %s again; it tells what is wrong with them",
            len(names), len(cases), ", ".join(names), contexts[0].told("plan-and-preprocess"),
        )  # fmt: skip
