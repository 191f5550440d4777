"""Data sets: nnU-Net folders, Decathlon folders, and case lists become the same `Dataset`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.raw.problems import Problem, short

UNUSABLE = Labels(values={})
LONGEST_NAME = 220  # bytes: file systems take 255, with ending and the prefix of what is being written


@dataclass(frozen=True)
class Case:
    """One case: its files and what is known of it."""

    id: str
    images: tuple[Path, ...]  # one file per channel, or one file (or DICOM folder) with all channels
    label: Path | None
    group: str | None = None  # cases of one group (patient) stay in one fold
    split: str | None = None  # "train", "val", "test", or None
    attributes: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    annotated: tuple[str, ...] | None = None  # annotated class names; None: all


@dataclass(frozen=True)
class Dataset:
    """A data set: what its labels and channels mean, and its cases."""

    name: str
    folder: Path
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str  # of label maps that are written
    cases: tuple[Case, ...]  # labelled training cases, sorted by name
    unlabelled: tuple[Case, ...]
    test: tuple[Case, ...]
    description: dict[str, Any]  # dataset.json in nnU-Net's form
    source: Path | None = None  # the folder, or the list, that it was read from


@dataclass(frozen=True)
class Draft:
    """A data set as far as it could be read, and what is wrong with it; `dataset` is only usable without errors."""

    dataset: Dataset
    file: Path  # the description
    has_labels: bool  # the declaration of the labels is usable
    problems: tuple[Problem, ...]


def raise_first(problems: tuple[Problem, ...]) -> None:
    """Raise the first error as a UserError that says how many there are."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    first = errors[0].as_error()
    more = f" (and {len(errors) - 1} more problem(s); `autoseg check` lists all)" if len(errors) > 1 else ""
    case = f" (case {errors[0].case})" if errors[0].case else ""
    raise UserError(first.what + case + more, where=first.where, mend=first.mend)


def name_fault(name: str) -> str:
    """Return what is said of a case name that is not safe."""
    said, size = f"the case name {short(repr(name))}", len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST_NAME:
        return f"{said} cannot become a file name: it is too long, {size} bytes of at most {LONGEST_NAME}"
    return f"{said} cannot become a file name"


def safe_name(name: str) -> bool:
    """Tell whether a case or data set name can become a file name: short, printable, no path, nothing hidden."""
    forbidden = ("/", "\\", "..", "\0")
    return (
        bool(name.strip())
        and not name.startswith(".")
        and name.isprintable()
        and not any(f in name for f in forbidden)
        and len(name.encode()) <= LONGEST_NAME
    )
