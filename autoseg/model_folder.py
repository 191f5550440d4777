"""The self-contained model folder: plans, labels, weights, post-processing, checksums. No pickle, no paths outside.

model.json            this description, with a checksum for every other file
members/<name>/plans.json, fold_0.safetensors, ...
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.plans import Frozen, Plans, parse
from autoseg.raw.images import ENDINGS
from autoseg.storage import file_hash, read_json

MODEL_FILE = "model.json"
# A folder from elsewhere must not keep a prediction busy for ever: it takes time for each of these.
MOST_MEMBERS, MOST_FOLDS, MOST_STEPS = 100, 1000, 1000


class Member(Frozen):
    """One configuration of the model with its folds; members are averaged as probabilities, folds as logits."""

    name: str
    plans_file: str
    configuration: str
    architecture: str
    trainer: str
    # Fold name -> weights file, relative to the model folder.
    folds: dict[str, str] = Field(min_length=1, max_length=MOST_FOLDS)
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...]  # spatial axes of the patch that mirroring may flip
    previous_stage: str | None = None  # name of the member whose label map this one takes as input
    in_ensemble: bool = True  # False for a member that only serves as a previous stage
    network_options: dict[str, Any] = {}
    plugin_source: str | None = None  # file with the architecture's source if it is not built in

    @field_validator("folds", "plans_file", "plugin_source")
    @classmethod
    def _inside(cls, value: Any) -> Any:
        names = value.values() if isinstance(value, dict) else [value]
        for name in names:
            if name is not None and not _is_inside(name):
                raise ValueError(f"{name!r} points outside of the model folder")
        return value

    @field_validator("folds")
    @classmethod
    def _each_its_own(cls, folds: dict[str, str]) -> dict[str, str]:
        first: dict[str, str] = {}
        for fold, file in folds.items():
            if first.setdefault(file, fold) != fold:
                raise ValueError(
                    f"folds {first[file]!r} and {fold!r} both name {file!r}, each needs weights of its own"
                )
        return folds


class PostprocessingStep(Frozen):
    """Keep only the largest connected component of the union of some internal label values."""

    rule: Literal["keep_largest"] = "keep_largest"
    values: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)


class Model(Frozen):
    """What model.json says."""

    format: Literal[1] = 1
    dataset_name: str
    dims_of_data: Literal[2, 3] = 3
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    orientation: Literal["as_stored", "ras"] = "as_stored"  # "ras": files are turned to right-anterior-superior axes
    members: tuple[Member, ...] = Field(max_length=MOST_MEMBERS)
    postprocessing: tuple[PostprocessingStep, ...] = Field(default=(), max_length=MOST_STEPS)
    selection: dict[str, Any] = {}  # how it was chosen: scores of every candidate
    versions: dict[str, str] = {}
    checksums: dict[str, str] = {}  # relative file -> SHA-256

    @field_validator("file_ending")
    @classmethod
    def _supported(cls, ending: str) -> str:
        if ending.lower() not in ENDINGS:
            raise ValueError(f"it must be one of {', '.join(ENDINGS)}")
        return ending

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: Labels) -> Labels:
        values = labels.values
        if not values or not all(values.values()):
            raise ValueError("every label needs a value, and there must be at least one label")
        _check_meanings(labels)
        if not labels.regions and len({one for one, *_ in values.values()}) < sum(map(len, values.values())):
            raise ValueError("labels that are no regions must have one value each, and each its own")
        if labels.regions and sorted(labels.paint_order) != sorted(values):
            raise ValueError("paint_order must name every region once")
        if labels.regions and len(labels.paint_values) != len(values):
            raise ValueError("paint_values must have one entry per region")
        unknown = set(labels.paint_values) - set(labels.foreground_values)
        if unknown:
            raise ValueError(f"paint_values {sorted(unknown)} are values of no region")
        return labels

    @model_validator(mode="after")
    def _steps_of_labels(self) -> Model:
        count = len(self.labels.foreground_values)
        for number, step in enumerate(self.postprocessing):
            unknown = [value for value in step.values if value > count]
            if unknown:
                raise ValueError(
                    f"postprocessing.{number}.values has {unknown}, the labels have the internal values 1 to {count}"
                )
        return self

    def member(self, name: str) -> Member:
        """Return a member by name; an unknown name is a UserError that lists the known ones."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise UserError(f"the model has no member {name!r}", where=MODEL_FILE, mend=f"choose one of: {known}")


def read_model(folder: Path, *, verify: bool = True) -> Model:
    """Read and validate a model folder; a missing, changed or outside file is a UserError that names it."""
    model: Model = parse(Model, read_json(folder / MODEL_FILE), folder / MODEL_FILE)
    for name, digest in model.checksums.items():
        file = folder / name
        if not _is_inside(name) or not file.is_file():
            raise UserError("the file is missing", where=file, mend="copy the model folder again")
        if verify and file_hash(file) != digest:
            raise UserError("the content does not match its checksum", where=file, mend="copy the model folder again")
    for member in model.members:
        files = {member.plans_file, *member.folds.values(), *filter(None, [member.plugin_source])}
        unlisted = files - set(model.checksums)
        if unlisted:
            raise UserError(f"files without a checksum: {sorted(unlisted)}", where=folder / MODEL_FILE)
    return model


def read_member_plans(folder: Path, member: Member) -> Plans:
    """Return the plans of one member; what model.json says against them is a UserError."""
    plans = Plans.read(folder / member.plans_file)
    dims = plans.configuration(member.configuration).dims
    beyond = [axis for axis in member.mirror_axes if axis >= dims]
    if beyond:
        raise UserError(
            f"member {member.name!r}: field mirror_axes has {beyond}, but configuration {member.configuration!r} is "
            f"{dims}D: its axes are 0 to {dims - 1}",
            where=folder / MODEL_FILE,
            mend="correct the field, or make the model anew",
        )
    return plans


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a model folder but model.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MODEL_FILE)
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def _check_meanings(labels: Labels) -> None:
    """Raise ValueError where a value means two of foreground, background and ignore."""
    if labels.background in labels.ignore:
        raise ValueError(f"ignore has {labels.background}, which is background; each needs a value of its own")
    for name, values in labels.values.items():
        for other, taken in (("background", (labels.background,)), ("ignore", labels.ignore)):
            if both := sorted(set(values) & set(taken)):
                raise ValueError(f"values.{name} has {both}, which is {other}; each needs a value of its own")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not {"\\", ":"} & set(name)
