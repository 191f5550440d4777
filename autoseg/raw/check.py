"""Every problem of every case of a data set, in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoseg.deadlines import file_bytes
from autoseg.errors import UserError
from autoseg.raw.case_check import CaseState, check_headers, check_voxels
from autoseg.raw.dataset import Draft
from autoseg.raw.images import FLAT_ENDINGS
from autoseg.raw.opening import draft_dataset, place_of
from autoseg.raw.problems import CheckReport, Problem
from autoseg.raw.written import unwritable_volumes
from autoseg.workers import default_workers, run_cases
from autoseg.workspace import Workspace

BYTES_PER_VOXEL = 16  # of a worker that checks a case: file content, float32 copy, label counts
HEADER_THREADS = 8


def check(
    reference: str | Path,
    workspace: str | Path | Workspace | None = None,
    *,
    fix_geometry: bool = False,
    workers: int | None = None,
) -> CheckReport:
    """Look for every problem of a data set: description, file names, headers, and then every voxel.

    All headers are read before the first voxel. `fix_geometry` resamples label maps that lie on another grid, in the
    same space, onto the grid of their image; the originals are kept in a folder beside, and label maps outside of the
    data set's folder, or of that of the list, are left alone. No problem stops the check; a data set that cannot be
    found is a UserError.
    """
    path = place_of(workspace).find_dataset(reference)
    try:
        draft = draft_dataset(path, workspace)
    except UserError as error:
        return CheckReport(str(reference), 0, 0, (Problem.of_error(error),))
    problems = list(draft.problems)
    folder = path if path.is_dir() else path.parent  # what the description names may lie anywhere
    states = _headers(draft, folder if fix_geometry else None, problems)
    problems += _one_kind(states)
    grids = {state.case.id: state.geometry for state in states if state.case.label and state.geometry is not None}
    problems += unwritable_volumes(draft.dataset.file_ending, grids, draft.file)
    states = _voxels(states, workers, problems)
    problems += _double_images(states) + _unused_classes(draft, states)
    problems = sorted(dict.fromkeys(problems), key=lambda p: (p.severity, bool(p.case), p.case, p.file))
    files = sum(len(state.headers) for state in states)
    return CheckReport(draft.dataset.name, len(states), files, tuple(problems))


def _headers(draft: Draft, fix_within: Path | None, problems: list[Problem]) -> list[CaseState]:
    dataset = draft.dataset
    labels = dataset.labels if draft.has_labels else None
    states = [
        CaseState(case, len(dataset.channel_names), labels, test=test, fix_within=fix_within)
        for test, cases in ((False, dataset.cases), (False, dataset.unlabelled), (True, dataset.test))
        for case in cases
    ]
    return _run(check_headers, states, problems, stage="reading headers", kind="thread", workers=HEADER_THREADS)


def _voxels(states: Sequence[CaseState], workers: int | None, problems: list[Problem]) -> list[CaseState]:
    largest = max((state.voxels for state in states), default=1)
    workers = workers or default_workers(BYTES_PER_VOXEL * largest)
    return _run(check_voxels, states, problems, stage="check", workers=workers, progress="check")


def _run(function, states: Sequence[CaseState], problems: list[Problem], **options) -> list[CaseState]:
    done = []
    for result in run_cases(function, states, name_of=_name, size_of=_size, **options):
        if result.error is not None:
            problems.append(Problem(result.error.reason, case=result.case))
            continue
        problems += result.value.problems
        done.append(result.value)
    return sorted(done, key=_name)


def _name(state: CaseState) -> str:
    return state.case.id


def _size(state: CaseState) -> int:
    return file_bytes((*state.case.images, state.case.label))


def _one_kind(states: Iterable[CaseState]) -> list[Problem]:
    """Images and volumes do not mix; pictures of different depth of colour are worth a look."""
    problems = []
    kinds: dict[str, list[tuple[str, Path, str]]] = {"dims": [], "type": []}
    for state in states:
        for path in state.case.images[:1]:
            if path in state.headers:
                header = state.headers[path]
                kinds["dims"].append((state.case.id, path, f"{header.geometry.dims}D"))
                if path.name.lower().endswith(FLAT_ENDINGS):
                    kinds["type"].append((state.case.id, path, str(header.dtype)))
    texts = {
        "dims": ("the image is {}, most are {}", "keep 2D and 3D images in data sets of their own", "error"),
        "type": ("the image has voxels of type {}, most have {}", "store all images with the same depth", "warning"),
    }
    for name, entries in kinds.items():
        if not entries:
            continue
        usual = Counter(value for _, _, value in entries).most_common(1)[0][0]
        message, mend, severity = texts[name]
        problems += [
            Problem(message.format(value, usual), str(path), case, name, value, mend, severity)
            for case, path, value in entries
            if value != usual
        ]
    return problems


def _double_images(states: Iterable[CaseState]) -> list[Problem]:
    problems: list[Problem] = []
    first: dict[str, CaseState] = {}
    for state in states:
        if not state.digest:
            continue
        earlier = first.setdefault(state.digest, state)
        if earlier is not state:
            where = "; one is for training, one for testing" if state.test != earlier.test else ""
            problems.append(
                Problem(
                    f"the same image as case {earlier.case.id}{where}",
                    str(state.case.images[0]),
                    case=state.case.id,
                    mend="remove one of them",
                    severity="warning",
                )
            )
    return problems


def _unused_classes(draft: Draft, states: Iterable[CaseState]) -> list[Problem]:
    if not draft.has_labels:
        return []
    present = {value for state in states if not state.test for value in state.present}
    return [
        Problem(
            f"class {name!r} (value {list(values)}) occurs in no training case",
            str(draft.file),
            field=f"labels.{name}",
            value=str(list(values)),
            mend="correct the declaration, or remove the class",
            severity="warning",
        )
        for name, values in draft.dataset.labels.values.items()
        if present and not present & set(values)
    ]
