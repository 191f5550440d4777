"""Commands that compute networks start again, once, with glibc's allocator set up; others do not."""

import os
import subprocess
import sys

import pytest

from autoseg.cli import allocator

PROGRAM = """
import os, sys
from autoseg.cli.allocator import start_again
start_again(sys.argv[1:])
print(os.getpid(), os.environ["GLIBC_TUNABLES"], sys.argv[1:], sys.stdin.read())
"""
glibc = pytest.mark.skipif(not allocator._is_glibc(), reason="another C library")


@pytest.fixture
def started(monkeypatch):
    """Return the commands that would replace this process."""
    found = []
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(allocator.NAME, raising=False)
    monkeypatch.setattr(allocator, "_is_glibc", lambda: True)
    monkeypatch.setattr(os, "execv", lambda path, command: found.append((path, command)))
    yield found
    os.environ.pop(allocator.NAME, None)


@pytest.mark.parametrize("command", sorted(allocator.COMMANDS))
def test_commands_with_networks_start_again_once(command, started, tmp_path):
    for _ in range(2):
        allocator.start_again([command, "x"], tmp_path)
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ[allocator.NAME] == allocator.TUNABLES


@pytest.mark.parametrize(
    "arguments", [[], ["--version"], ["train", "--help"], ["evaluate", "train"], ["plan-and-preprocess", "predict"]]
)
def test_others_do_not(arguments, started, tmp_path):
    allocator.start_again(arguments, tmp_path)
    assert started == []


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_what_the_user_set_up_holds(name, started, monkeypatch, tmp_path):
    monkeypatch.setenv(name, "")
    allocator.start_again(["train"], tmp_path)
    assert started == []


def test_another_c_library_is_left_alone(started, monkeypatch, tmp_path):
    monkeypatch.setattr(allocator, "_is_glibc", lambda: False)
    allocator.start_again(["train"], tmp_path)
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (["train"], 0),
        (["train", "--device", "cuda"], 0),
        (["train", "--device", "cpu"], 1),
        (["train", "--device=cpu"], 1),
    ],
)
def test_with_a_gpu_only_where_the_cpu_is_asked_for(arguments, again, started, tmp_path):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    allocator.start_again(["train", *arguments], tmp_path)
    assert len(started) == again


@glibc
def test_it_is_the_same_process_with_the_same_arguments_and_input():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, "train", "a b", "--device", "cpu"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        told, _ = process.communicate("typed")
    assert told == f"{process.pid} {allocator.TUNABLES} ['train', 'a b', '--device', 'cpu'] typed\n"
