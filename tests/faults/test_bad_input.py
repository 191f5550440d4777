"""Every kind of bad input gives one clear message with file, value and mend, and its exit code; docs/messages.md.

`AUTOSEG_WRITE_MESSAGES=1 python -m pytest -n 0 tests/faults/test_bad_input.py` writes the page anew.
"""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import bad_descriptions
import bad_images
import bad_models
import bad_settings
import pytest
from bad_data import sound

from autoseg.cli.running import run

PAGE = "messages.md"
LONG_RUN = re.compile(r"(\w)\1{30,}")
HEAD = """# What autoseg says of bad input

Every kind of bad input that is tested, with the command that meets it, its exit code, and the message. Written by
`tests/faults/test_bad_input.py`; paths are relative to the folder of the test. Exit code 2: nothing was done; 1: the
case is listed and all others are complete; 0: a warning, or nothing at all where the input is taken as it is. The
messages of `autoseg check` are those of `--json`; without it they stand in one table.
"""


@dataclass(frozen=True)
class Kind:
    """One kind of bad input."""

    group: str
    name: str
    make: object
    says: str
    code: int


def kinds(group, table, code):
    return [Kind(group, name, make, says, code) for name, (make, says) in table.items()]


CHECKED = [
    *kinds("Images", bad_images.IMAGES, 2),
    *kinds("Images that are taken", bad_images.IMAGES_TAKEN, 0),
    *kinds("Label maps", bad_descriptions.LABELS, 2),
    *kinds("Label maps that are taken", bad_descriptions.LABELS_TAKEN, 0),
    *kinds("Descriptions and lists", bad_descriptions.DESCRIPTIONS, 2),
    *kinds("Descriptions and lists that are taken", bad_descriptions.DESCRIPTIONS_TAKEN, 0),
]
COMMANDS = [
    *kinds("Plans, settings and splits", bad_settings.SETTINGS, 2),
    *kinds("Data sets that cannot be planned", bad_settings.UNPLANNED, 2),
    *kinds("Models and folders of images", bad_models.MODELS, 2),
    *kinds("Images to be segmented", bad_models.CASES, 1),
]
ids = {"ids": lambda kind: f"{kind.group}: {kind.name}".replace(" ", "_")}


@dataclass(frozen=True)
class Outcome:
    command: str
    code: int
    message: str


@pytest.fixture(scope="session")
def outcomes():
    """What was said, by kind; the page is held against it when all kinds ran."""
    return {}


@pytest.fixture
def place(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["autoseg.raw.check"], "default_workers", lambda _: 1)
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path / "w"))
    monkeypatch.setenv("COLUMNS", "120")
    capfd.readouterr()
    return tmp_path


def cleaned(text: str, place: Path) -> str:
    text = text.replace(f"{place}/", "").replace(str(place), ".")
    text = LONG_RUN.sub(lambda run: run[1] * 30, text)  # how many letters are left depends on the folder's length
    return text.replace(str(Path(__file__).resolve().parents[2]), "AUTOSEG").strip()


def show(problem: dict) -> str:
    """Return a problem of the check as the error that `open_dataset` would raise."""
    what = f"field {problem['field']}: {problem['message']}" if problem["field"] else problem["message"]
    case = f" (case {problem['case']})" if problem["case"] else ""
    return f"{problem['severity']}: {problem['file']}: {what}{case}\nTo mend it: {problem['mend']}"


@pytest.mark.parametrize("kind", CHECKED, **ids)
def test_check_tells(kind, place, capfd, outcomes):
    data = sound(place)
    kind.make(data)
    code = run(["check", str(data.folder), "--json"])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    problems = json.loads(out)["problems"]
    text = cleaned("\n".join(map(show, problems)), place)
    outcomes[kind.group, kind.name] = Outcome("autoseg check data", code, text)
    assert (code, kind.says in text) == (kind.code, True), text
    errors = [problem for problem in problems if problem["severity"] == "error"]
    assert bool(errors) == (kind.code == 2)
    for problem in problems:
        assert problem["file"], problem
        assert problem["mend"], problem
        assert "Error:" not in problem["message"], problem  # an exception that nobody expected


@pytest.mark.parametrize("kind", COMMANDS, **ids)
def test_commands_tell(kind, place, capfd, outcomes):
    data = sound(place)
    arguments = kind.make(data)
    before = {path for path in place.rglob("*") if path.is_file()}
    code = run(arguments)
    _, err = capfd.readouterr()
    text = cleaned("\n".join(line for line in err.splitlines() if "%|" not in line), place)
    outcomes[kind.group, kind.name] = Outcome(cleaned(f"autoseg {' '.join(arguments)}", place), code, text)
    assert (code, kind.says in text) == (kind.code, True), text
    assert "Traceback" not in text
    assert "defect of autoseg" not in text
    assert "To mend it: " in text
    assert not (place / "executed").exists()
    made = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} - {
        path.relative_to(place).as_posix() for path in before
    }
    if kind.make in [make for make, _ in bad_settings.UNPLANNED.values()]:  # what was read is kept; no plans are made
        assert all(name.startswith("w/preprocessed/data/decoded/") for name in made)
    elif kind.code == 1:
        assert made == {"out/good.nii.gz", "out/autoseg_predictions.json"}
    else:
        assert not made


@dataclass(frozen=True)
class Faulty:
    """A faulty data set beside the repository: exit codes of the check and of preprocessing, file and fault."""

    check: int
    preprocessing: int
    file: str
    says: str


FAULTY = {
    "empty_label": Faulty(0, 0, "labelsTr/hippocampus_177.nii.gz", "the label map is empty"),
    "fractional_label": Faulty(2, 1, "labelsTr/hippocampus_143.nii.gz", "not integers, such as 1.5"),
    "mismatched_affine": Faulty(2, 1, "labelsTr/hippocampus_319.nii.gz", "another geometry (affine) than the image"),
    "missing_label": Faulty(2, 2, "imagesTr/hippocampus_141_0000.nii.gz", "the training image has no label map"),
    "mixed_png": Faulty(2, 1, "imagesTr/sem_8rgba_0000.png", "3 channel(s) in all, where 1 channel(s) are declared"),
    "nan_voxels": Faulty(2, 1, "imagesTr/hippocampus_166_0000.nii.gz", "4"),  # 48 are NaN, 49 are not finite
    "truncated_gzip": Faulty(2, 1, "imagesTr/hippocampus_171_0000.nii.gz", "the gzip stream is truncated"),
    "undeclared_label": Faulty(2, 1, "labelsTr/hippocampus_252.nii.gz", "declared are [0, 1, 2]"),
    "wrong_shape": Faulty(2, 1, "labelsTr/hippocampus_149.nii.gz", "the label map has shape (29, 49, 33)"),
}
FAULTY_GROUP = "Faulty data sets of real cases"


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_data_sets_beside_the_repository(name, shared, place, capfd, outcomes):
    source, kind = shared / "data" / "bad_input", FAULTY[name]
    assert {path.name for path in source.iterdir() if path.is_dir()} == set(FAULTY)
    shutil.copytree(source / name, name)
    assert run(["check", name, "--json"]) == kind.check
    problems = json.loads(capfd.readouterr().out)["problems"]
    assert [problem for problem in problems if f"{name}/{kind.file}" in problem["file"] and problem["mend"]]
    checked = cleaned("\n".join(map(show, problems)), place)
    assert kind.says in checked
    preprocess = ["plan-and-preprocess", name, "--planner", "nnunet", "-c", "2d", "--workers", "1"]
    assert run(preprocess) == kind.preprocessing
    err = cleaned(capfd.readouterr().err, place)
    told = err[err.index("error: ") :] if "error: " in err else ""
    stored = list(Path("w").rglob("cases/*.image.b2nd"))
    cases = len(list(Path(name).glob("imagesTr/*")))
    assert len(stored) == {0: cases, 1: cases - 1, 2: 0}[kind.preprocessing]
    if kind.preprocessing:
        assert f"{name}/{kind.file}: " in told
        assert kind.says in told
        assert "To mend it: " in told
    outcomes[FAULTY_GROUP, name] = [
        Outcome(f"autoseg check {name}", kind.check, checked),
        Outcome(f"autoseg {' '.join(preprocess)}", kind.preprocessing, told),
    ]


def test_there_are_many_kinds():
    assert len({(kind.group, kind.name) for kind in CHECKED + COMMANDS}) == len(CHECKED + COMMANDS)
    assert sum(kind.code > 0 for kind in CHECKED + COMMANDS) >= 60


def test_the_page_of_messages_is_up_to_date(outcomes, repository):
    if any((kind.group, kind.name) not in outcomes for kind in CHECKED + COMMANDS):
        pytest.skip("only a part of the kinds ran")
    lines, group = [HEAD], None
    for kind in CHECKED + COMMANDS:
        if kind.group != group:
            group = kind.group
            lines.append(f"## {group}\n")
        lines += [f"### {kind.name}\n", shown(outcomes[kind.group, kind.name])]
    page = "\n".join(lines)
    heading = f"\n## {FAULTY_GROUP}\n"
    file = repository / "docs" / PAGE
    written = file.read_text(encoding="utf-8")
    faulty = written.partition(heading)[2]
    if all((FAULTY_GROUP, name) in outcomes for name in FAULTY):  # which need the data beside the repository
        entries = [f"### {name}\n\n" + "\n".join(map(shown, outcomes[FAULTY_GROUP, name])) for name in FAULTY]
        faulty = "\n" + "\n".join(entries)
    page += heading + faulty
    if os.environ.get("AUTOSEG_WRITE_MESSAGES"):
        file.write_text(page, encoding="utf-8")
        written = page
    assert written == page, "call this file with AUTOSEG_WRITE_MESSAGES=1"


def shown(outcome: Outcome) -> str:
    """Return what the page says of one command."""
    said = outcome.message or "(nothing: it is taken as it is)"
    return f"`{outcome.command}`, exit code {outcome.code}\n\n```text\n{said}\n```\n"
