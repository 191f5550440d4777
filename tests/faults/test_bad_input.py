"""Every kind of bad input gives one clear message with file, value and mend, and its exit code; docs/messages.md.

`AUTOSEG_WRITE_MESSAGES=1 python -m pytest -n 0 tests/faults/test_bad_input.py` writes the page anew.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import bad_descriptions
import bad_images
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
    *kinds("Models and folders of images", bad_settings.MODELS, 2),
    *kinds("Images to be segmented", bad_settings.CASES, 1),
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
    if kind.code == 1:
        assert made == {"out/good.nii.gz", "out/autoseg_predictions.json"}
    else:
        assert not made


SHARED = {  # how the check of every faulty data set beside the repository ends
    "empty_label": 0,
    "fractional_label": 2,
    "mismatched_affine": 2,
    "missing_label": 2,
    "mixed_png": 2,
    "nan_voxels": 2,
    "truncated_gzip": 2,
    "undeclared_label": 2,
    "wrong_shape": 2,
}


def test_faulty_data_sets_beside_the_repository(shared, place, capfd):
    folder = shared / "data" / "bad_input"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(SHARED)
    for name, expected in SHARED.items():
        code = run(["check", str(folder / name), "--json"])
        problems = json.loads(capfd.readouterr().out)["problems"]
        assert (name, code) == (name, expected)
        assert problems
        assert all(problem["file"] and problem["mend"] for problem in problems)


def test_there_are_many_kinds():
    assert len({(kind.group, kind.name) for kind in CHECKED + COMMANDS}) == len(CHECKED + COMMANDS)
    assert sum(kind.code > 0 for kind in CHECKED + COMMANDS) >= 60


def test_the_page_of_messages_is_up_to_date(outcomes, repository):
    if len(outcomes) < len(CHECKED + COMMANDS):
        pytest.skip("only a part of the kinds ran")
    lines, group = [HEAD], None
    for kind in CHECKED + COMMANDS:
        outcome = outcomes[kind.group, kind.name]
        if kind.group != group:
            group = kind.group
            lines.append(f"## {group}\n")
        said = outcome.message or "(nothing: it is taken as it is)"
        lines.append(f"### {kind.name}\n\n`{outcome.command}`, exit code {outcome.code}\n\n```text\n{said}\n```\n")
    page = "\n".join(lines)
    file = repository / "docs" / PAGE
    if os.environ.get("AUTOSEG_WRITE_MESSAGES"):
        file.write_text(page, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == page, "call this file with AUTOSEG_WRITE_MESSAGES=1"
