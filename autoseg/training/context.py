"""What a run is about: the data, the plan, the fold, the place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.plans import Configuration, Plans
from autoseg.raw import Case, Dataset
from autoseg.store import CaseStore


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
    workspace_root: Path | None = None  # where loose plug-ins are looked for
    previous_stage: str | None = None  # name of the stored label maps of the previous stage, for a cascade
    rank: int = 0  # this process among `processes`
    processes: int = 1
    pretrained: bool = False  # the run starts from given weights
    left_out_cases: tuple[str, ...] = ()  # of the fold, which are not in the store

    def case(self, case_id: str) -> Case:
        """Return the raw case of an id."""
        return next(case for case in (*self.dataset.cases, *self.dataset.unlabelled) if case.id == case_id)
