"""The command line as a whole: help, examples, cheap start, several values after one option."""

import functools
import re
import subprocess
import sys
import time

import pytest
import typer

from autoseg import training
from autoseg.cli.app import COMMANDS, app
from autoseg.cli.command import Command, spread
from autoseg.training import starting

GROUP = typer.main.get_command(app)


def parse(line):
    """Return what `autoseg ...` hands to its command, which is not run; wrong names, options and values raise."""
    name, *arguments = line.split()[1:]

    @functools.wraps(COMMANDS[name])
    def given(**parameters):
        return parameters

    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Command)(given)
    command = typer.main.get_command(alone)
    with command.make_context(name, arguments) as context:
        return command.invoke(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(autoseg, name):
    shown = autoseg(name, "--help")
    assert shown.code == 0
    assert "--debug" in shown.out
    examples = re.findall(rf"^ +(autoseg {name}.*)$", shown.out, re.MULTILINE)
    assert examples
    for example in examples:
        parse(example)


def test_every_command_has_a_whole_sentence_in_the_overview(autoseg):
    shown = autoseg("--help")
    assert shown.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", shown.out, re.MULTILINE), name
    assert "..." not in shown.out.partition("Commands:")[2]


def test_commands_of_the_design():
    wanted = {
        "demo": "--workspace --time-budget",
        "check": "",
        "plan-and-preprocess": "--planner --architecture --gpu-memory --time-budget -c --workers --plans-name",
        "train": "--trainer --plans --architecture --pretrained --set --time-budget --device --seed --restart",
        "pretrain": "--trainer",
        "find-best": "",
        "predict": "-i -o -m -d --folds --save-probabilities --uncertainty --no-mirroring --step-size",
        "evaluate": "--dataset-json",
        "report": "",
        "benchmark": "--architectures --trainers --equal --budget --folds --seeds --dry-run --jobs --name",
        "list": "",
        "new": "",
        "check-plugin": "",
        "doctor": "",
    }
    for name, options in wanted.items():
        known = {opt for param in GROUP.commands[name].params for opt in (*param.opts, *param.secondary_opts)}
        assert set(options.split()) | {"--debug"} <= known, name
        if name not in ("new", "evaluate"):
            assert "--workspace" in known, name


def test_help_imports_nothing_heavy():
    code = """
import sys
from autoseg.cli import main
try:
    main([{arguments}])
except SystemExit as leave:
    assert leave.code == 0, leave.code
heavy = {{"torch", "numpy", "SimpleITK", "scipy", "rich"{more}}} & set(sys.modules)
assert not heavy, heavy
"""
    # typer itself reads the arguments of a command with pydantic
    for arguments, more in (("'--help'", ", 'pydantic'"), ("'train', '--help'", ""), ("'list', 'trainers'", "")):
        line = code.format(arguments=arguments, more=more)
        subprocess.run([sys.executable, "-c", line], check=True, capture_output=True)


def test_no_arguments_show_the_help(autoseg):
    shown = autoseg()
    assert "plan-and-preprocess" in shown.out + shown.err


def test_version(autoseg):
    import autoseg as package

    shown = autoseg("--version")
    assert (shown.code, shown.out) == (0, f"autoseg {package.__version__}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("autoseg plan-and-preprocess D -c 2d 3d_fullres", {"configurations": ["2d", "3d_fullres"], "dataset": "D"}),
        ("autoseg plan-and-preprocess -c 2d D", {"configurations": ["2d"], "dataset": "D"}),
        ("autoseg plan-and-preprocess D -c 2d -c 3d_lowres --workers 2", {"configurations": ["2d", "3d_lowres"]}),
        ("autoseg train D 2d --set a=1 b=2 0,2", {"settings": ["a=1", "b=2"], "folds": "0,2"}),
        ("autoseg train D 2d 0 --set a=1 b=2 --seed 3", {"settings": ["a=1", "b=2"], "seed": 3, "folds": "0"}),
        ("autoseg train --set a=-1 D 2d", {"settings": ["a=-1"], "dataset": "D", "folds": "cv"}),
        ("autoseg predict -i in -o out -d D --folds 0 1 2 --no-mirroring", {"folds": ["0", "1", "2"]}),
        ("autoseg train D 2d --time-budget 1h30m", {"time_budget": 5400.0}),
        ("autoseg demo --time-budget 10m", {"time_budget": 600.0}),
        ("autoseg demo", {"time_budget": 600.0}),
    ],
)
def test_lines_mean_what_they_say(line, expected):
    found = parse(line)
    assert {name: found[name] for name in expected} == expected


def test_spread_leaves_everything_after_two_dashes():
    options = [param for param in GROUP.commands["train"].params if param.param_type_name == "option"]
    assert spread(["--set", "a=1", "--", "b=2"], options, 3) == ["--set", "a=1", "--", "b=2"]
    assert spread(["--set=a=1", "b=2"], options, 3) == ["--set=a=1", "--set", "b=2"]


@pytest.mark.parametrize(("command", "called"), [("train", "train"), ("pretrain", "pretrain")])
def test_a_time_budget_counts_from_the_start_of_the_command(autoseg, monkeypatch, command, called):
    """Loading torch takes seconds, which are the user's, too."""
    given = {}
    monkeypatch.setattr(training, called, lambda *_, **arguments: given.update(arguments) or [])
    before = time.monotonic()
    folds = ["0"] if command == "train" else []
    assert autoseg(command, "data", "2d", *folds, "--time-budget", "90s").code == 0
    assert given["time_budget"] == 90
    assert before <= given["started"] <= time.monotonic()


def test_a_start_long_ago_leaves_less_of_the_budget(tiny, monkeypatch):
    shares = []
    monkeypatch.setattr(starting, "carry_out", lambda *arguments: shares.append(arguments[-1].seconds))
    long_ago = time.monotonic() - 600
    training.train(
        "Dataset004_Hippocampus", "3d_fullres", "0", plans_name="tiny", workspace=tiny, name="late", device="cpu",
        time_budget=3600.0, started=long_ago, workers=1,
    )  # fmt: skip
    assert 2900 < shares[0] <= 3000
