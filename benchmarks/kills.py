"""Kill every command at random moments, repeat it, and compare what it leaves with what an undisturbed one left.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--workers 2] [--folder DIR] [--without export ...]

Nine commands from `check` to `evaluate`, with `pretrain` and `export`, on six bundled hippocampus cases, with networks
of some thousand weights and a checkpoint after every step; the validation of a trained fold, which is the end of
`train`, is killed by itself, too. SIGKILL strikes the whole process group, workers included:
six times of ten just after a random one of the files that the command itself writes, where it writes any, else at a
random moment of the time that the undisturbed command took. A third of the repetitions is killed, too. The last
repetition must succeed, print what the undisturbed command printed, and leave the same files: byte for byte, or, in
files that also tell times, value for value. Commands run in forks of a process that has imported everything, so no kill
is wasted on imports.
With --folder, a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from small_pipeline import NAME, SMALL, commands, copy_data

from autoseg.storage import content_hash, file_hash, read_json, write_json

REPEATED_KILLS = 0.33  # share of the repetitions that are killed, too
AT_FILES = 0.6  # share of the kills that strike when a file was just put into its place
HIDDEN = (".writing-", ".replaced-")  # what a killed process was writing; nobody reads it
VALIDATION = "validation of 2d"
TRAINING = "train 2d"  # of which it is the end
PRINT_SECONDS = ("train", "validation", "pretrain")  # beginnings of their names
TIMES = {"seconds", "cpu_seconds", "validation_seconds", "validation_cpu_seconds", "seconds_of_last_start"}


def run_command(
    arguments: list[str], folder: Path, seconds: float | None = None, write: int | str | None = None
) -> tuple[int, str]:
    """Run a command in a process group of its own, killed after `seconds` or `write` files: exit code and output.

    `write` may also be the name of a folder: then its first file is the last thing that is written.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _be_command(arguments, theirs, folder, write)
    os.setpgid(child, child)  # here and in the child: whoever comes first
    os.close(theirs)
    end, killed, printed = None if seconds is None else time.monotonic() + seconds, False, b""
    while True:  # until no process of the group holds the pipe any more
        left = None if end is None or killed else max(0.0, end - time.monotonic())
        if not select.select([ours], [], [], left)[0]:
            killed = True
            os.killpg(child, signal.SIGKILL)
        elif block := os.read(ours, 65536):
            printed += block
        else:
            break
    os.close(ours)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed.decode()


def _be_command(arguments: list[str], output: int, folder: Path, write: int | str | None) -> NoReturn:
    """Be the command line: what `autoseg ARGUMENTS` does once everything is imported."""
    code, written, replace = 70, 0, os.replace

    def counting(source: Path, target: Path) -> None:
        """Put a file into its place; kill the command where that is the one to strike at."""
        nonlocal written
        replace(source, target)
        written += 1
        if write in (written, Path(target).parent.name):
            os.killpg(0, signal.SIGKILL)

    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.replace = counting
        os.dup2(os.open(folder / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        from autoseg.cli.running import run

        code = run(arguments)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            (folder / "written").write_text(str(written))
        os._exit(code)


def all_commands(work: Path, workers: int) -> dict[str, list[str]]:
    """Return the command lines of the small pipeline, of a validation, a pretraining, and an export of its model."""
    lines = commands(work, workers, **SMALL)
    place, helpers = ["--workspace", str(work)], ["--workers", str(workers)]
    pretrain = ["pretrain", NAME, "3d_fullres", *SMALL["training"][:5], *place, *helpers]
    model = work / "results" / NAME / "model"
    added = {"pretrain": pretrain, "export": ["export", str(model), "-o", str(work / "exported")]}
    return {name: line for key in lines for name, line in _with_validation(key, lines[key])} | added


def _with_validation(name: str, line: list[str]) -> list[tuple[str, list[str]]]:
    """Return a command line, and behind that of a training the same one for what is left after its last step."""
    return [(name, line), (VALIDATION, line)] if name == TRAINING else [(name, line)]


def import_everything() -> None:
    """Import what the commands need, on one thread per process; no thread may be started before a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "AUTOSEG_WORKSPACE": ""}
    import autoseg.cli.app
    import autoseg.evaluation
    import autoseg.inference
    import autoseg.planning
    import autoseg.preprocessing
    import autoseg.selection
    import autoseg.training  # noqa: F401


def contents(work: Path) -> dict[str, Any]:
    """Return what every file says: its hash, or its values where it also tells times."""
    files = (path.relative_to(work) for path in sorted(work.rglob("*")) if path.is_file())
    visible = [path for path in files if not any(part.startswith(HIDDEN) for part in path.parts)]
    return {str(path): READERS.get(path.name, file_hash)(work / path) for path in visible}


def _record(path: Path) -> Any:
    return {name: value for name, value in read_json(path).items() if name not in TIMES}


def _log(path: Path) -> Any:
    """Return (kind, step, loss) of all events that do not depend on the clock, in the order of the file."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [[e["event"], e["step"], e.get("loss")] for e in events if e["event"] in ("step", "end")]


def _checksums(path: Path) -> Any:
    """Return size and checksum of the raw files, whose copies have other times."""
    return {name: [size, digest] for name, (size, *_, digest) in read_json(path)["files"].items()}


def _state(path: Path) -> Any:
    import io

    import torch

    from autoseg.training.checkpoint import _MAGIC

    state = torch.load(io.BytesIO(path.read_bytes()[len(_MAGIC) + 32 :]), weights_only=True)
    progress = [state["progress"][name] for name in ("step", "finished")]
    return content_hash(state["modules"], state["optimizers"], progress)


READERS: dict[str, Callable[[Path], Any]] = {
    "run.json": _record, "log.jsonl": _log, "state.pt": _state, "checksums.json": _checksums,
}  # fmt: skip


def make_reference(folder: Path, lines: dict[str, list[str]]) -> dict[str, Any]:
    """Run every command undisturbed; keep the workspace before each, and what it printed, left and took."""
    work, reference = folder / "work", {}
    copy_data(work)
    for name, arguments in lines.items():
        if name == VALIDATION:
            _end_before_validation(folder, arguments)
        shutil.copytree(work, folder / "before" / name)
        began = time.monotonic()
        code, printed = run_command(arguments, folder)
        assert code == 0, f"{name} does not work undisturbed: see {folder / 'errors.txt'}"
        reference[name] = {
            "seconds": time.monotonic() - began,
            "files": int((folder / "written").read_text()),
            "printed": printed,
            "left": contents(work),
        }
        print(f"undisturbed: {name}, {reference[name]['seconds']:.1f} s", flush=True)
    return reference


def _end_before_validation(folder: Path, arguments: list[str]) -> None:
    """Leave the workspace as a training does that is killed after its last step."""
    work = folder / "work"
    shutil.rmtree(work)
    shutil.copytree(folder / "before" / TRAINING, work)
    code, _ = run_command(arguments, folder, write="validation")
    assert code == -signal.SIGKILL, f"{TRAINING} was over before its validation: see {folder / 'errors.txt'}"
    for validated in work.glob("results/*/*/fold_*/validation"):
        if validated.parents[1].name.endswith("2d"):
            shutil.rmtree(validated)


def one_trial(name: str, draw: random.Random, folder: Path, arguments: list[str], expected: Any) -> dict[str, Any]:
    """Kill a command once or more, repeat it, compare."""
    work, moments, touched = folder / "work", [], 0
    shutil.rmtree(work)
    shutil.copytree(folder / "before" / name, work)
    before = contents(work)
    while not moments or draw.random() < REPEATED_KILLS:
        at_a_file = bool(expected["files"]) and draw.random() < AT_FILES
        moment = draw.randint(1, expected["files"]) if at_a_file else draw.uniform(0, expected["seconds"])
        began = time.monotonic()
        code, _ = run_command(arguments, folder, **{"write" if at_a_file else "seconds": moment})
        if code != -signal.SIGKILL:
            if not moments:  # the machine has become quicker
                expected["seconds"] = min(expected["seconds"], time.monotonic() - began)
            break
        moments.append(f"file {moment}" if at_a_file else f"{moment:.2f} s")
        touched += contents(work) != before
    code, printed = run_command(arguments, folder)
    found, wanted = contents(work), expected["left"]
    differences = [file for file in sorted({*found, *wanted}) if found.get(file) != wanted.get(file)]
    if code != 0:
        differences.append(f"exit code {code}, see errors.txt")
    if printed != expected["printed"] and not name.startswith(PRINT_SECONDS):
        differences.append(f"printed {printed!r}")
    return {"command": name, "kills": len(moments), "moments": moments, "touched": touched, "differences": differences}


def table(trials: list[dict[str, Any]]) -> str:
    """Return the outcomes by command."""
    lines = [
        "| command | kills | struck after it had written something | result equal after repetition |",
        "|---|---|---|---|",
    ]
    kills, touched, trying, equal = Counter(), Counter(), Counter(), Counter()
    for trial in trials:
        for name in (trial["command"], "all"):
            kills[name] += trial["kills"]
            touched[name] += trial["touched"]
            trying[name] += 1
            equal[name] += not trial["differences"]
    names = [*dict.fromkeys(trial["command"] for trial in trials), "all"]
    lines += [f"| {name} | {kills[name]} | {touched[name]} | {equal[name]} of {trying[name]} |" for name in names]
    return "\n".join(lines)


def main() -> None:
    """Make the reference, kill, repeat, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps everything here; default: a temporary folder")
    parser.add_argument("--without", nargs="*", default=[], choices=["pretrain", "export"], help="are not killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        import_everything()
        lines = all_commands(folder / "work", options.workers)
        for name in options.without:
            del lines[name]
        if not (folder / "reference.json").is_file():
            shutil.rmtree(folder / "before", ignore_errors=True)
            shutil.rmtree(folder / "work", ignore_errors=True)
            write_json(folder / "reference.json", make_reference(folder, lines))
        reference, record = read_json(folder / "reference.json"), folder / "trials.json"
        trials = read_json(record) if record.is_file() else []
        while sum(trial["kills"] for trial in trials) < options.kills:
            name = list(lines)[len(trials) % len(lines)]
            draw = random.Random(f"{options.seed}/{len(trials)}")
            trials.append(one_trial(name, draw, folder, lines[name], reference[name]))
            write_json(record, trials)
            print(json.dumps(trials[-1]), flush=True)
        print(table(trials))
        sys.exit(any(trial["differences"] for trial in trials))


if __name__ == "__main__":
    main()
