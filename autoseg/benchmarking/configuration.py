"""Which configuration of a data set is compared: the one asked for, else `3d_fullres`, or `2d` for 2D images."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from autoseg import plugins
from autoseg.benchmarking.matrix import Entry
from autoseg.benchmarking.question import Question
from autoseg.errors import UserError
from autoseg.fingerprinting import FINGERPRINT_FILE
from autoseg.plans import Plans
from autoseg.raw import Dataset, read_geometry, told
from autoseg.storage import read_json
from autoseg.workspace import Workspace

USUAL = ("3d_fullres", "2d")
PLANNED = ("2d", "3d_fullres", "3d_lowres")  # a cascade is no network of its own

log = logging.getLogger(__name__)


def configuration_of(question: Question, dataset: Dataset, workspace: Workspace) -> str:
    """Return the name of the configuration; plans or a configuration that the question names win over the images."""
    if question.plans is not None:
        return _planned(question, dataset, workspace)
    flat = is_flat(dataset, workspace)
    name = question.configuration or ("2d" if flat else "3d_fullres")
    known = ("2d",) if flat else PLANNED
    if name not in known and not _has_its_own(question.planner, workspace):
        kind = "2D images have" if flat else "plans have"
        raise UserError(
            f"{kind} no configuration {name!r}",
            where=dataset.name,
            mend=f"use -c {' or '.join(known)}, or leave it out",
        )
    return name


def _has_its_own(planner: str, workspace: Workspace) -> bool:
    """Return whether a planner may plan configurations of other names."""
    from autoseg.planning.planner import Planner

    return plugins.load("planner", planner, workspace.root).configurations is not Planner.configurations


def dims_of(configuration: str) -> int:
    """Return the dimensions that a network must serve."""
    return 2 if configuration == "2d" else 3


def is_flat(dataset: Dataset, workspace: Workspace) -> bool:
    """Return whether the images have one slice: by the fingerprint, or before there is one by the first header."""
    file = workspace.preprocessed_folder(dataset.name) / FINGERPRINT_FILE
    if file.is_file():
        return statistics.median(shape[0] for shape in read_json(file)["shapes_after_crop"]) == 1
    first = (*dataset.cases, *dataset.unlabelled)[0]  # mixed images are an error that `check` tells
    return read_geometry(first.images[0]).size[0] == 1


def _planned(question: Question, dataset: Dataset, workspace: Workspace) -> str:
    file = workspace.plans_file(dataset.name, question.plans or "")
    if not file.is_file():
        raise UserError(
            f"there are no plans {question.plans!r} for {dataset.name}", where=file,
            mend=f"run: {told('plan-and-preprocess', dataset, workspace)}, or leave --plans out",
        )  # fmt: skip
    known = Plans.read(file).configurations
    name = question.configuration or next((one for one in USUAL if one in known), next(iter(known)))
    if name not in known:
        raise UserError(f"plans {question.plans!r} have no configuration {name!r}", mend=f"use: {', '.join(known)}")
    return name


def tell_forms(dataset: str, dims: int, entries: Sequence[Entry]) -> None:
    """Tell which networks a data set goes without, as they have no such form; raises UserError where none has it."""
    kinds = {entry.architecture.name: entry.architecture.kind for entry in entries}
    lacking = [name for name, kind in kinds.items() if dims not in kind.dims]
    if lacking and len(lacking) == len(kinds):
        raise UserError(
            f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no {dims}D form", where=dataset,
            mend="add networks that have one (`autoseg list architectures` shows it), or leave this data set out",
        )  # fmt: skip
    for name in lacking:
        log.warning("%s is left out on %s: it has no %dD form", name, dataset, dims)
