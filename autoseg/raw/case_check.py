"""The check of one case: first its headers, then every voxel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.raw.dataset import Case
from autoseg.raw.doubts import doubtful_place, doubtful_spacing
from autoseg.raw.geometry import Geometry, compare, label_grid_error
from autoseg.raw.images import channel_error, read_header, read_image, read_label
from autoseg.raw.nifti import Header
from autoseg.raw.problems import Problem
from autoseg.raw.regrid import regrid_label


@dataclass
class CaseState:
    """What is known of one case after its headers were read, and after its voxels were."""

    case: Case
    channels: int
    labels: Labels | None
    test: bool = False  # it is of the test set
    headers: dict[Path, Header] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    resolvable: bool = False  # the label lies on another grid in the same space
    fix_within: Path | None = None  # label maps in this folder are put onto the grid of their image
    present: frozenset[int] = frozenset()  # raw values of the label map
    digest: str = ""  # of the voxels of all images, if all could be read

    @property
    def geometry(self) -> Geometry | None:
        """The grid of the first image that could be read."""
        return next((self.headers[path].geometry for path in self.case.images if path in self.headers), None)

    @property
    def voxels(self) -> int:
        """Voxels of all files of the case."""
        return sum(header.components * prod(header.geometry.size) for header in self.headers.values())

    def complain(self, message: str, file: Path, **details: str) -> None:
        """Note a problem of a file."""
        self.problems.append(Problem(message, str(file), case=self.case.id, **details))


def check_headers(state: CaseState) -> CaseState:
    """Read the headers of all files of a case: they exist, fit the channels, and lie on one grid."""
    case = state.case
    for path in [*case.images, *([case.label] if case.label else [])]:
        try:
            state.headers[path] = read_header(path)
            state.problems += _of_case(case, doubtful_place(state.headers[path], path))
        except UserError as error:
            state.problems.append(Problem.of_error(error, case=case.id))
        except OSError as error:
            mend = "see that the file is there and that you may read it"
            state.complain(f"the file cannot be read ({error.strerror})", path, mend=mend)
    if state.geometry is not None:
        state.problems += _of_case(case, doubtful_spacing(state.geometry))
    images = [path for path in case.images if path in state.headers]
    found = sum(state.headers[path].components for path in images)
    if len(images) == len(case.images) and found != state.channels and state.channels:
        error = channel_error(case.images, found, state.channels)
        state.problems.append(Problem.of_error(error, case=case.id, field="channel_names", value=str(found)))
    for path in images[1:]:
        _same_grid(state, images[0], path)
    if case.label in state.headers and images:
        _label_grid(state, images[0], case.label)
    return state


def _of_case(case: Case, problems: Iterable[Problem]) -> list[Problem]:
    return [replace(problem, case=case.id) for problem in problems]


def _same_grid(state: CaseState, first: Path, other: Path) -> None:
    one, two = state.headers[first].geometry, state.headers[other].geometry
    if one.size != two.size or compare(one, two).verdict != "equal":
        state.complain(
            f"the channels lie on different grids: {two.describe()}; {first.name} has {one.describe()}",
            other,
            mend="resample all channels of a case to one grid",
        )


def _label_grid(state: CaseState, image: Path, label: Path) -> None:
    one, two = state.headers[image].geometry, state.headers[label].geometry
    error = label_grid_error(one, two, label)
    if error is None:
        return
    state.resolvable = compare(one, two).verdict == "resolvable"
    if state.resolvable and state.fix_within:
        return  # mended before the voxels are read
    field, value = ("shape", str(two.size)) if one.size != two.size else ("geometry", two.describe())
    state.problems.append(Problem.of_error(error, case=state.case.id, field=field, value=value))


def check_voxels(state: CaseState) -> CaseState:
    """Read every voxel of a case: finite, readable to the end, declared label values."""
    state = replace(state, problems=[])
    digest = hashlib.blake2b(digest_size=16)
    complete = True
    for path in state.case.images:
        header = state.headers.get(path)
        if header is None or not _image_voxels(state, path, header, digest):
            complete = False
    if complete:
        state.digest = digest.hexdigest()
    label = state.case.label
    if label in state.headers and (not state.resolvable or not state.fix_within or _mend_grid(state)):
        _label_voxels(state, label)
    return state


def _image_voxels(state: CaseState, path: Path, header: Header, digest) -> bool:
    try:
        data = read_image([path], channels=header.components).data
    except UserError as error:
        state.problems.append(Problem.of_error(error, case=state.case.id))
        return False
    digest.update(repr(data.shape).encode())
    digest.update(data)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(data.sum(dtype=np.float64))
    if not finite:
        nan, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        state.complain(
            f"the image has {nan} NaN and {infinite} infinite voxel(s)",
            path,
            field="voxels",
            value=f"{nan} NaN, {infinite} inf",
            mend="replace them, for example by the value of the background, or remove the case",
        )
    elif data.min() == data.max():
        value = f"{data.flat[0]:g}"
        state.complain(
            f"all voxels have the value {value}",
            path,
            field="voxels",
            value=value,
            severity="warning",
            mend="look at the image; remove the case if nothing was recorded",
        )
    return True


def _mend_grid(state: CaseState) -> bool:
    try:
        kept = regrid_label(state.case.label, state.geometry, within=state.fix_within)
    except UserError as error:
        state.problems.append(Problem.of_error(error, case=state.case.id, field="geometry"))
        return False
    message = f"the label map was resampled onto the image's grid; the original is kept as {kept}"
    state.complain(message, state.case.label, field="geometry", severity="warning")
    return True


def _label_voxels(state: CaseState, path: Path) -> None:
    try:
        label, _ = read_label(path)
    except UserError as error:
        state.problems.append(Problem.of_error(error, case=state.case.id, field="label values"))
        return
    values = dict(count_values(label))
    state.present = frozenset(values)
    labels = state.labels
    if labels is None:
        return
    declared = {labels.background, *labels.foreground_values, *labels.ignore}
    unknown = {value: count for value, count in values.items() if value not in declared}
    if unknown:
        listed = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:10])
        state.complain(
            f"label value(s) that dataset.json does not declare: {listed}; declared are {sorted(declared)}",
            path,
            field="label values",
            value=str(sorted(unknown)[:10]),
            mend="correct the label map, or declare the value under labels in dataset.json",
        )
    elif not state.present & set(labels.foreground_values):
        state.complain(
            "the label map is empty: no voxel of any class",
            path,
            field="label values",
            value="0",
            severity="warning",
            mend="keep it if the structure is really absent; else draw it, or remove the case",
        )
    _not_annotated(state, path, values)


def _not_annotated(state: CaseState, path: Path, values: dict[int, int]) -> None:
    """Warn of voxels of classes that the case is not said to be annotated for: training takes them as background."""
    annotated, labels = state.case.annotated, state.labels
    if annotated is None:
        return
    shown = {value for name in annotated for value in labels.values.get(name, ())}
    hidden = set(labels.foreground_values) - shown
    for name, members in labels.values.items():
        count = sum(values.get(value, 0) for value in hidden.intersection(members))
        if count:
            state.complain(
                f"{count} voxel(s) of class {name!r}, which is not listed as annotated in this case",
                path,
                field="annotated",
                value=name,
                mend="list the class as annotated, or remove its voxels",
                severity="warning",
            )


def count_values(label: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield every value of an integer array with its number of voxels, in increasing order."""
    low, high = int(label.min()), int(label.max())
    if max(high, high - low) < 2**16:
        shifted = label.ravel().astype(np.intp, copy=False)
        counts = np.bincount(shifted - low if low < 0 else shifted)
        low = min(low, 0)
        yield from ((int(value) + low, int(counts[value])) for value in np.flatnonzero(counts))
    else:
        values, counts = np.unique(label, return_counts=True)
        yield from zip(values.tolist(), counts.tolist(), strict=True)
