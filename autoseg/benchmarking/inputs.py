"""What the result of a run depends on beside its plan and recipe: the user's own code, the split, the stored cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.benchmarking.matrix import Plugin
from autoseg.errors import UserError
from autoseg.raw import Dataset, split_of
from autoseg.storage import content_hash, file_hash


def folds_compared(text: str, dataset: Dataset, splits: Sequence[Any]) -> tuple[str, ...]:
    """Return the folds of a data set; one that is scored on the cases that it trained on is a UserError."""
    from autoseg.training.folds import parse_folds

    folds = parse_folds(text, len(splits))
    if "all" in folds:
        few = (
            "" if splits else f": {dataset.name} has one case, or one group of cases, which leaves nothing to score on"
        )
        raise UserError(
            f"fold all is scored on the cases that it was trained on, which compares nothing{few}", where="--folds",
            mend="use folds of the split, such as 0, 0,2, 0-4 or cv" if splits else "compare on another data set",
        )  # fmt: skip
    return tuple(folds)


def code_of(kind: plugins.Kind, plugin: Plugin, root: Path | None) -> str | None:
    """Return a checksum of the user's own file that a network or trainer comes from, None for one of a package."""
    file = plugins.loose_file(kind, plugin.reference, root)
    return None if file is None else file_hash(file)


def data_of(dataset: Dataset, splits: Sequence[Any], fold: str, folder: Path) -> str:
    """Return a checksum of the cases of a fold: which train, which score, and what the store in `folder` has."""
    from autoseg.store import CaseStore

    store, split = CaseStore(folder), split_of(list(splits), [case.id for case in dataset.cases], fold)
    stored = set(store.cases)
    parts = {part: [(case, store.read(case).record.input_hash if case in stored else None) for case in sorted(cases)]
             for part, cases in split.items()}  # fmt: skip
    return content_hash(parts["train"], parts["val"])
