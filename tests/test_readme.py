"""What README and docs show is true: command lines parse, snippets run, plug-ins are found."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from autoseg.cli.app import app
from autoseg.plugins import KINDS, in_file, load

ROOT = Path(__file__).resolve().parents[1]
MADE_WRONG = ROOT / "docs" / "messages.md"  # holds commands that are refused
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {MADE_WRONG})]
LINE = re.compile(r"^(?:    |\$ |.*?&& )(autoseg [^#\n]+)$|`(autoseg [a-z][^`]*)`", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = {"NAME": "a_name", "FILE": "file.py"}


def lines():
    found = []
    for page in PAGES:
        text = BLOCK.sub(lambda block: block.group(0) if block.group(1) == "console" else "", page.read_text("utf-8"))
        found += [(page.name, (match.group(1) or match.group(2)).strip()) for match in LINE.finditer(text)]
    return found


def blocks(language):
    return [
        pytest.param(match.group(2), id=f"{page.name}-{number}")
        for page in PAGES
        for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8")))
        if match.group(1) == language
    ]


@pytest.mark.parametrize(("page", "line"), lines(), ids=lambda value: value[:60])
def test_command_lines_parse(page, line):
    name, *arguments = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    assert name in group.commands, f"{page}: {line}"
    if arguments:
        group.commands[name].make_context(name, [PLACEHOLDERS.get(argument, argument) for argument in arguments])


def test_there_are_lines_to_parse():
    assert len(lines()) > 25
    assert {line.split()[1] for _, line in lines()} >= {
        "demo",
        "check",
        "train",
        "find-best",
        "predict",
        "report",
        "new",
    }


@pytest.mark.parametrize("source", blocks("python"))
def test_python_snippets_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "snippet.py"
    file.write_text(source)
    plugins = [(kind, entry) for kind in KINDS for entry in in_file(kind, file)]
    for kind, entry in plugins:
        assert load(kind, entry.reference).__doc__
    if not plugins:
        exec(compile(source, str(file), "exec"), {})


@pytest.mark.parametrize("source", blocks("json"))
def test_json_snippets_are_valid_descriptions(source):
    from autoseg.labels import labels_from_description

    assert labels_from_description(json.loads(source)).names


def test_the_example_trainer_is_short():
    snippet = next(block.values[0] for block in blocks("python") if "small_lesions" in block.values[0])
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 25


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(((?!https?://)[^)#]+)\)", BLOCK.sub("", page.read_text("utf-8"))):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_use_names_that_exist(path):
    import importlib

    import autoseg

    source = path.read_text("utf-8")
    for name in re.findall(r"\bautoseg\.([A-Za-z_]+)\(", source):
        assert callable(getattr(autoseg, name)), name
    for module, names in re.findall(r"^from (autoseg[\w.]*) import (.+)$", source, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
