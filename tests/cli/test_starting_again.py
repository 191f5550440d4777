"""Commands that compute networks start again, once, with glibc's allocator set up; others do not."""

import os
import subprocess
import sys
import threading

import pytest

from autoseg import cli
from autoseg.allocator import SMALL_BLOCKS_UNCACHED, TUNABLES, is_glibc
from autoseg.cli import starting_again
from autoseg.cli.starting_again import COMMANDS, ONCE, start_again

PROGRAM = """
import os, sys
from pathlib import Path
from autoseg.cli.starting_again import start_again
print("begun", flush=True)
start_again(sys.argv[1:], Path("/no such folder"))
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.stdin.read())
sys.exit(3)
"""
needs_glibc = pytest.mark.skipif(not is_glibc(), reason="another C library")


@pytest.fixture
def started(monkeypatch):
    """Return the commands that would replace this process, which runs as if it were just that command."""
    found = []
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(ONCE, raising=False)
    monkeypatch.setattr(starting_again, "is_glibc", lambda: True)
    monkeypatch.setattr(starting_again, "_is_just_this_command", lambda arguments: True)
    monkeypatch.setattr(os, "execv", lambda path, command: found.append((path, command)))
    yield found
    os.environ.pop(ONCE, None)
    os.environ.pop(TUNABLES, None)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_with_networks_start_again_once(command, started, tmp_path):
    for _ in range(2):
        start_again([command, "x"], tmp_path)
        os.environ.pop(TUNABLES, None)  # as a loader may do
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]


@pytest.mark.parametrize(
    "arguments", [[], ["--version"], ["train", "--help"], ["evaluate", "train"], ["plan-and-preprocess", "predict"]]
)
def test_others_do_not(arguments, started, tmp_path):
    start_again(arguments, tmp_path)
    assert started == []


@pytest.mark.parametrize(
    ("name", "value", "tunables"),
    [
        (TUNABLES, "glibc.malloc.arena_max=1", None),
        ("MALLOC_MMAP_MAX_", "100", None),
        (TUNABLES, "glibc.rtld.nns=4", f"glibc.rtld.nns=4:{SMALL_BLOCKS_UNCACHED}"),
        ("MALLOC_ARENA_MAX", "2", SMALL_BLOCKS_UNCACHED),
    ],
)
def test_what_the_user_set_up_holds(name, value, tunables, started, monkeypatch, tmp_path):
    monkeypatch.setenv(name, value)
    start_again(["train"], tmp_path)
    assert len(started) == (tunables is not None)
    assert os.environ.get(TUNABLES) == (tunables or (value if name == TUNABLES else None))


def test_another_c_library_is_left_alone(started, monkeypatch, tmp_path):
    monkeypatch.setattr(starting_again, "is_glibc", lambda: False)
    start_again(["train"], tmp_path)
    assert started == []


@pytest.mark.parametrize("error", [OSError("no room"), ValueError("empty"), TypeError("None")])
def test_a_process_that_cannot_be_replaced_goes_on_as_it_was(error, started, monkeypatch, tmp_path):
    def execv(path, command):
        raise error

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setenv(TUNABLES, "glibc.rtld.nns=4")
    start_again(["train"], tmp_path)
    assert os.environ[TUNABLES] == "glibc.rtld.nns=4"
    assert ONCE not in os.environ


@pytest.mark.parametrize("driver", ["proc/driver/nvidia", "dev/dxg", "dev/kfd"])
@pytest.mark.parametrize(
    ("arguments", "again"), [([], 0), (["--device", "cuda"], 0), (["--device", "cpu"], 1), (["--device=cpu"], 1)]
)
def test_with_a_gpu_only_where_the_cpu_is_asked_for(arguments, again, driver, started, tmp_path):
    (tmp_path / driver).mkdir(parents=True)
    start_again(["train", *arguments], tmp_path)
    assert len(started) == again


def test_a_process_with_more_threads_or_other_arguments_is_not_just_this_command(monkeypatch, tmp_path):
    program = tmp_path / "autoseg"
    program.touch()
    monkeypatch.setattr(sys, "argv", [str(program), "train", "x"])
    monkeypatch.setattr(sys, "orig_argv", ["python", str(program), "train", "x"])
    threads = threading.active_count()
    monkeypatch.setattr(threading, "active_count", lambda: 1 + threads - threads)
    assert starting_again._is_just_this_command(["train", "x"])
    assert not starting_again._is_just_this_command(["train", "y"])  # a host set sys.argv
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not starting_again._is_just_this_command(["train", "x"])


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", ONCE))}


@needs_glibc
def test_it_is_the_same_process_with_the_same_arguments_input_and_exit_code(tmp_path):
    program = tmp_path / "a program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-P", str(program), "train", "a b"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        told, _ = process.communicate("typed")
    expected = f"begun\nbegun\n{process.pid} {SMALL_BLOCKS_UNCACHED} ['train', 'a b'] typed\n"
    assert (told, process.returncode) == (expected, 3)


@pytest.mark.parametrize("program", [["-"], ["-c", PROGRAM]])
def test_a_program_that_is_no_file_is_not_begun_twice(program):
    """What came by standard input cannot be read again."""
    done = subprocess.run(
        [sys.executable, *program, "train"], env=environment(), input=PROGRAM + "\n", capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stdout.splitlines()[:1] == ["begun"]
    assert done.stdout.splitlines()[1].endswith(" None ['train'] ")


def test_the_command_line_starts_again_before_it_loads_anything(monkeypatch):
    class Replaced(Exception):
        pass

    def replaced(arguments):
        raise Replaced(arguments, "autoseg.cli.running" in sys.modules)

    monkeypatch.setattr(starting_again, "start_again", replaced)
    monkeypatch.setattr(sys, "argv", ["autoseg", "train", "x"])
    monkeypatch.delitem(sys.modules, "autoseg.cli.running", raising=False)
    with pytest.raises(Replaced) as caught:
        cli.main()
    assert caught.value.args == (["train", "x"], False)
