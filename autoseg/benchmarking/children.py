"""Work in child processes, some at a time: their memory comes back, and one that dies takes nothing with it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import Interrupted
from autoseg.storage import read_json, write_json

PATIENCE = 120.0  # seconds that a stopped child may take to write its checkpoint
NOUNS = {
    "plan": ("plan", "plans"), "measure": ("timing of steps", "timings of steps"), "train": ("run", "runs")
}  # fmt: skip
TELL_SECONDS = 60.0  # after which work under way is told, and again after as long
TAIL = 600  # characters of a dead child's output that are told
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One piece of work: `kind` is a function of `autoseg.benchmarking.child`, `request` its arguments."""

    key: str
    kind: str
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a task returned, or why it did not."""

    answer: dict[str, Any] | None
    error: str | None
    seconds: float
    died: bool = False  # without a word: killed, or crashed below Python
    warnings: tuple[str, ...] = ()  # what was warned of on the way


def carry_out(
    tasks: Sequence[Task],
    done: Callable[[Task, Outcome], None],
    *,
    folder: Path,
    jobs: int,
    threads: int,
    devices: Sequence[str],
) -> None:
    """Carry out tasks, `jobs` at a time, each with so many threads and, in turn, on one of the devices.

    `done` hears of each as it ends. Ctrl-C or SIGTERM stops all children, which keep what they have, and raises
    Interrupted.
    """
    from autoseg.training.stopping import StopRequest

    waiting, running = list(reversed(tasks)), dict[int, _Child]()
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.asked:
                for slot in range(jobs):
                    if slot not in running and waiting:
                        running[slot] = _Child(waiting.pop(), folder, threads, devices[slot % len(devices)])
                time.sleep(0.1)
                for slot, child in list(running.items()):
                    if child.ended:
                        del running[slot]
                        done(child.task, child.outcome())
                    else:
                        child.tell()
        finally:
            for child in running.values():
                child.ask_to_stop()
            for child in running.values():
                child.wait()
        if stop.asked:
            raise Interrupted(f"stopped by {stop.asked}; {what_is_left(tasks, waiting, list(running.values()))}")


def what_is_left(tasks: Sequence[Task], waiting: Sequence[Task], running: Sequence[Any]) -> str:
    """Return in words what was cut short and what was not begun."""
    noun = NOUNS.get(tasks[0].kind, ("task", "tasks"))

    def count(number: int) -> str:
        return f"{number} {noun[number != 1]}"

    kept = "keeps its checkpoint" if len(running) == 1 else "keep their checkpoints"
    said = [f"{count(len(running))} under way" + (f", which {kept}" if tasks[0].kind == "train" else "")]
    return ", and ".join((said if running else []) + ([f"{count(len(waiting))} not begun"] if waiting else []))


class _Child:
    """A running process."""

    def __init__(self, task: Task, folder: Path, threads: int, device: str):
        self.task, self.started, self._tell_at = task, time.monotonic(), TELL_SECONDS
        place = folder / "work"
        place.mkdir(parents=True, exist_ok=True)
        name = f"{task.kind}-{task.key}".replace("/", "-")
        self._request, self._answer = place / f"{name}.request.json", place / f"{name}.answer.json"
        self.log = place / f"{name}.txt"
        self._answer.unlink(missing_ok=True)
        write_json(self._request, {"kind": task.kind, **task.request, "threads": threads, "device": device})
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # -P: the current folder, which may be a data set, holds no modules.
        command = [sys.executable, "-P", "-m", "autoseg.benchmarking.child", str(self._request), str(self._answer)]
        with self.log.open("wb") as output:  # a group of its own: Ctrl-C reaches it through us, once
            own: dict[str, Any] = {"process_group": 0}
            if sys.platform == "win32":
                own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, **own
            )

    def tell(self) -> None:
        """Say from time to time what takes long."""
        lasted = time.monotonic() - self.started
        if lasted >= self._tell_at:
            self._tell_at += TELL_SECONDS
            noun = NOUNS.get(self.task.kind, ("task",))[0]
            log.info("%s: its %s is under way for %.0f s", self.task.key, noun, lasted)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def outcome(self) -> Outcome:
        """Return what came of it; its small files go, the output of a failure stays."""
        seconds = time.monotonic() - self.started
        answer = read_json(self._answer) if self._answer.is_file() else {}
        self._answer.unlink(missing_ok=True)
        self._request.unlink(missing_ok=True)
        warnings = tuple(answer.get("warnings", ()))
        if "result" in answer:
            self.log.unlink(missing_ok=True)
            return Outcome(answer["result"], None, seconds, warnings=warnings)
        error = answer.get("error") or self._death()
        return Outcome(None, error, seconds, died="error" not in answer, warnings=warnings)

    def ask_to_stop(self) -> None:
        if not self.ended:
            self._process.terminate()

    def wait(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._request.unlink(missing_ok=True)
        self._answer.unlink(missing_ok=True)

    def _death(self) -> str:
        code = self._process.returncode
        said = self.log.read_text(encoding="utf-8", errors="replace").strip()[-TAIL:]
        how = f"ended with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return f"the process {how}; it said last: {said or 'nothing'}"
