"""Cross-validation splits: nnU-Net's rule, groups kept together, the user's own splits first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw.dataset import Case, Dataset
from autoseg.regular_files import irregular
from autoseg.storage import read_json
from autoseg.workspace import Workspace

SPLITS_FILE = "splits_final.json"
MEND = "correct the fold, or remove the file to have splits made"
Split = dict[str, list[str]]  # {"train": [...], "val": [...]}


def make_splits(
    dataset: Dataset, folds: int = 5, *, seed: int = 12345, workspace: Workspace | None = None
) -> list[Split]:
    """Return one {"train": cases, "val": cases} per fold.

    In this order: splits_final.json beside dataset.json, or in the preprocessed folder of the workspace; the column
    `split` where it has both train and val (one fold); else `folds` folds. With groups, all cases of a group are in one
    fold. With fewer cases (groups) than folds, one is left out at a time; with a single one there are no folds, and
    only the fold "all" can be trained.

    Source: nnU-Net's rule (sorted names, scikit-learn's KFold with shuffle and random state 12345).
    """
    own = own_splits(dataset, workspace)
    if own is not None:
        return own
    given = {part: sorted(case.id for case in dataset.cases if case.split == part) for part in ("train", "val")}
    if all(given.values()):
        return [given]
    groups = _groups(dataset.cases)
    if len(groups) < 2:
        return []
    if len(groups) == len(dataset.cases):
        parts = _k_fold(sorted(case.id for case in dataset.cases), min(folds, len(groups)), seed)
    else:
        parts = _group_folds(groups, min(folds, len(groups)), seed)
    names = sorted(case.id for case in dataset.cases)
    return [{"train": [n for n in names if n not in part], "val": [n for n in names if n in part]} for part in parts]


def own_splits(dataset: Dataset, workspace: Workspace | None = None) -> list[Split] | None:
    """Return the user's own splits, beside dataset.json or in the preprocessed folder, if there are any."""
    for folder in (dataset.folder, workspace and workspace.preprocessed_folder(dataset.name)):
        if folder is not None and ((folder / SPLITS_FILE).is_file() or irregular(folder / SPLITS_FILE)):
            return read_splits(folder / SPLITS_FILE, [case.id for case in dataset.cases])
    return None


def split_of(splits: Sequence[Split], cases: Sequence[str], fold: int | str, *, seed: int = 12345) -> Split:
    """Return the split of one fold: a number, or "all" (train and validate on every case).

    A number beyond the splits is a random 80:20 split of its own, as in nnU-Net.
    """
    names = sorted(cases)
    if fold == "all":
        return {"train": names, "val": names}
    fold = int(fold)
    if fold < len(splits):
        return splits[fold]
    if len(names) < 2:
        raise UserError(f"there is no fold {fold} of {len(names)} case(s)", mend='train the fold "all"')
    random = np.random.RandomState(seed + fold)
    chosen = set(random.choice(len(names), int(len(names) * 0.8), replace=False).tolist())
    parts = {"train": True, "val": False}
    return {part: [n for i, n in enumerate(names) if (i in chosen) == inside] for part, inside in parts.items()}


def read_splits(file: Path, cases: Sequence[str]) -> list[Split]:
    """Read a splits file; unknown cases, and cases in both parts of a fold, are UserErrors."""
    content = read_json(file)
    known = set(cases)
    if not isinstance(content, list) or not content:
        raise UserError(
            "the file must be a list of folds", where=file, mend='write [{"train": [...], "val": [...]}, ...]'
        )
    for index, split in enumerate(content):
        parts = [split.get(part) if isinstance(split, dict) else None for part in ("train", "val")]
        if not all(isinstance(part, list) and part and all(isinstance(n, str) for n in part) for part in parts):
            raise UserError(f"fold {index} must have the lists train and val, both with cases", where=file, mend=MEND)
        unknown = sorted(set(parts[0] + parts[1]) - known)
        if unknown:
            raise UserError(
                f"fold {index} names case(s) that the data set does not have: {', '.join(unknown[:5])}",
                where=file,
                mend=MEND,
            )
        both = sorted(set(parts[0]) & set(parts[1]))
        if both:
            raise UserError(f"fold {index} trains and validates on {', '.join(both[:5])}", where=file, mend=MEND)
    return [{"train": list(split["train"]), "val": list(split["val"])} for split in content]


def _groups(cases: Sequence[Case]) -> list[list[str]]:
    """Return the names of the cases of every group, sorted; a case without a group is one of its own."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for case in sorted(cases, key=lambda case: case.id):
        groups.setdefault((case.group is None, case.group or case.id), []).append(case.id)
    return [groups[key] for key in sorted(groups)]


def _k_fold(names: list[str], folds: int, seed: int) -> list[set[str]]:
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    return [{names[index] for index in part} for part in np.array_split(order, folds)]


def _group_folds(groups: list[list[str]], folds: int, seed: int) -> list[set[str]]:
    """Deal shuffled groups, the largest first, to the fold with the fewest cases."""
    order = np.arange(len(groups))
    np.random.RandomState(seed).shuffle(order)
    parts: list[set[str]] = [set() for _ in range(folds)]
    for index in sorted(order, key=lambda index: -len(groups[index])):
        min(parts, key=len).update(groups[index])
    return parts
