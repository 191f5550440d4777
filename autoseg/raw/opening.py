"""Open a data set from whatever describes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw.dataset import UNUSABLE, Case, Dataset, Draft, raise_first, safe_name
from autoseg.raw.description import Description, parse_description, read_description
from autoseg.raw.folders import Found, listed_pairs, named_cases, nnunet_cases
from autoseg.raw.lists import csv_cases, json_cases, place_case, usual_ending
from autoseg.raw.names import doubled_names
from autoseg.raw.problems import LONGEST_PATH, Problem, is_there, short
from autoseg.raw.tables import read_extras
from autoseg.raw.written import unwritable_labels
from autoseg.regular_files import irregular, refuse_irregular
from autoseg.storage import read_json
from autoseg.workspace import Workspace

TABLE_SUFFIXES = (".csv", ".tsv")


def place_of(workspace: str | Path | Workspace | None) -> Workspace:
    """Return the workspace given as such or by its folder; None: the default workspace."""
    return workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)


def open_dataset(reference: str | Path | Dataset, workspace: str | Path | Workspace | None = None) -> Dataset:
    """Open a data set given by path, or by name or number in the workspace; an open one is returned as it is.

    No voxel is read.

    A folder with dataset.json: nnU-Net's raw layout (imagesTr, labelsTr, imagesTs, labelsTs; optional imagesUn, and
    nnU-Net's field `dataset`), or the Medical Segmentation Decathlon's (`training`: image and label; 4D images hold
    the channels). Tables beside it (cases.csv, attributes.csv, domains.csv, texts.json) give group (column `patient`,
    `subject` or `group`), `split`, `annotated` (names with ;), text and attributes of the cases that they name.

    A JSON file with nnU-Net's fields: a variant of a data set without a copy of the images. `folder` is the raw folder,
    relative to the file; fields that the file lacks are taken from the dataset.json there. Further fields, in any
    dataset.json: `labels_folder` (say "scribblesTr" instead of labelsTr), `annotated` {"case": ["liver"]} and `groups`
    {"case": "patient 7"}.

    A case list, with paths relative to the list:
    - CSV or TSV, columns: `case` (default: from the image's name), `image` or one `image_CHANNEL` per channel, `label`
      (empty: unlabelled), and optionally `patient`/`subject`/`group`, `split` (train, val, test, unlabelled), `text`,
      `annotated` (class names with ;); every other column is an attribute. LIST.json or dataset.json beside it gives
      `labels` and, if the columns do not say, `channel_names`.
    - JSON, nnU-Net's fields and `cases`: a list of {"case", "images": [...], "label", "group", "split", "text",
      "annotated": [...], "attributes": {...}}, or the name of a CSV list.

    Raises UserError for the first problem; `check` lists all.
    """
    if not isinstance(reference, (str, Path)):
        return reference
    draft = draft_dataset(reference, workspace)
    raise_first(draft.problems)
    return draft.dataset


def draft_dataset(reference: str | Path, workspace: str | Path | Workspace | None = None) -> Draft:
    """Open a data set as far as possible and collect what is wrong with it."""
    path = place_of(workspace).find_dataset(reference)
    refuse_irregular(path)
    refuse_irregular(path / "dataset.json")
    if path.is_dir() and not (path / "dataset.json").is_file():
        raise UserError(
            "the folder has no dataset.json",
            where=path,
            mend="give a folder in nnU-Net's raw layout, a Decathlon folder, or a case list (.csv, .json)",
        )
    if path.suffix.lower() in TABLE_SUFFIXES:
        description = _description_beside(path)
        folder, found = path.parent, csv_cases(path, description)
    else:
        folder, description, found = _described(path / "dataset.json" if path.is_dir() else path)
    return _assemble(path, folder, description, found)


def _described(file: Path) -> tuple[Path, Description, Found]:
    description = read_description(file)
    content = description.json
    if "cases" in content:
        return file.parent, description, json_cases(file, description)
    name = content.get("folder", ".")
    folder = file.parent / str(name)
    if not isinstance(name, str) or not is_there(folder, folder=True):
        what = f"field folder names {short(folder, LONGEST_PATH)}, which does not exist"
        raise UserError(what, where=file, mend="correct the path")
    base = folder / "dataset.json"
    refuse_irregular(base)
    if base.is_file() and base.resolve() != file.resolve():
        description = read_description(file, read_json(base))
        content = description.json
    if "dataset" in content:
        found = named_cases(folder, description)
    elif isinstance(content.get("training"), list):
        found = listed_pairs(folder, description)
    else:
        found = nnunet_cases(folder, description)
    try:
        extras = read_extras(folder, found.problems)
    except UserError as error:
        found.problems.append(Problem.of_error(error))
        return folder, description, found
    listed = [*found.cases, *found.unlabelled, *found.test]
    for cases in (found.cases, found.unlabelled, found.test):
        cases.clear()
    for case in listed:  # a table may say that an image of imagesTr is for testing
        place_case(extras[case.id].add_to(case) if case.id in extras else case, found)
    return folder, description, found


def _description_beside(file: Path) -> Description:
    for candidate in (file.with_suffix(".json"), file.parent / "dataset.json"):
        if candidate.is_file() or irregular(candidate):
            return read_description(candidate)
    description = parse_description({}, file)
    description.problems.clear()
    mend = f'write {file.with_suffix(".json").name} with {{"labels": {{"background": 0, "tumour": 1}}}} beside the list'
    description.problems.append(Problem("nothing says what the labels mean", str(file), field="labels", mend=mend))
    return description


def _name_of(path: Path) -> str:
    path = path.resolve()
    name = path.name if path.is_dir() else path.stem
    if path.is_file() and name in ("dataset", "cases"):
        name = path.parent.name
    if not safe_name(name):
        raise UserError(f"the name {name!r} cannot become a folder name", where=path, mend="rename the data set")
    return name


def _assemble(source: Path, folder: Path, description: Description, found: Found) -> Draft:
    name = _name_of(source)
    problems = [*description.problems, *found.problems]
    for cases in (found.cases, found.unlabelled, found.test):
        cases[:] = sorted((_annotate(case, description, problems) for case in cases), key=lambda case: case.id)
    problems += doubled_names([*found.cases, *found.unlabelled], found.test, description.file)
    if not found.cases and not any(problem.severity == "error" for problem in problems):
        mend = "add images and label maps, or correct the list"
        problems.append(Problem("the data set has no labelled training case", str(description.file), mend=mend))
    count = len(found.cases) + sum(problem.message.endswith("has no label map") for problem in found.problems)
    if description.num_training not in (None, count):
        message = f"it says {description.num_training}, but there are {count} training cases"
        problems.append(
            Problem(
                message,
                str(description.file),
                field="numTraining",
                value=str(description.num_training),
                mend="correct the number, or find the missing cases",
                severity="warning",
            )
        )
    ending = description.file_ending or usual_ending([*found.cases, *found.test])
    labels = description.labels or UNUSABLE
    problems += unwritable_labels(ending, labels, description.file)
    dataset = Dataset(
        name=name,
        folder=folder,
        channel_names=description.channel_names,
        labels=labels,
        file_ending=ending,
        cases=tuple(found.cases),
        unlabelled=tuple(found.unlabelled),
        test=tuple(found.test),
        description=description.json | {"file_ending": ending},
        source=source,
    )
    return Draft(dataset, description.file, description.labels is not None, tuple(problems))


def _annotate(case: Case, description: Description, problems: list[Problem]) -> Case:
    """Add the description's fields to a case, and check its class names."""
    case = replace(
        case,
        group=description.groups.get(case.id, case.group),
        annotated=description.annotated.get(case.id, case.annotated),
    )
    if case.annotated and description.labels and case.id not in description.annotated:
        unknown = sorted(set(case.annotated) - set(description.labels.names))
        if unknown:
            message = f"annotated class(es) {unknown} are not among the labels {list(description.labels.names)}"
            mend = "use the names under labels"
            problems.append(Problem(message, case=case.id, field="annotated", mend=mend))
    return case
