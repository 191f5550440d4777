"""Worker processes: started once per worker and fed by a pipe, so that start-up is paid once; watched all the time.

On Linux they come from a fork server that has the function's module loaded; elsewhere they are spawned. Where there are
several, each has one core to itself: its numeric libraries are told to use one thread.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection as pipes
from pathlib import Path
from typing import Any

from autoseg.deadlines import START_SECONDS, VARIABLE
from autoseg.errors import UserError
from autoseg.storage import temporary_folder
from autoseg.waiting import SILENCE_SECONDS, tell_silence
from autoseg.worker_life import live_as_worker
from autoseg.worker_results import Outcome, Result, attempt, reason_of, result_of
from autoseg.worker_start import not_started, start_process

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # how often memory high-water marks and deadlines are looked at
PAUSE_SECONDS = 30.0  # between two looks at the workers: longer ones are Ctrl-Z or a user of the results who is slow
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


def _serve(connection: pipes.Connection) -> None:
    """Run in a worker process: receive the function once, then items until the parent closes the pipe."""
    live_as_worker()
    try:
        function = pickle.loads(connection.recv_bytes())
        connection.send("ready")
        while True:
            item = connection.recv_bytes()
            outcome = attempt(lambda content: function(pickle.loads(content)), item)
            try:
                answer = pickle.dumps(outcome, protocol=5)
            except Exception as error:
                answer = pickle.dumps(Outcome(reason=reason_of(error), trace=traceback.format_exc()))
            connection.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@dataclass
class Worker:
    """A process and what it is at."""

    process: Any
    connection: pipes.Connection
    index: int | None = None  # the item in flight
    deadline: float = 0.0
    since: float = 0.0  # when it got the item
    ready: bool = False
    peak: int = 0


@dataclass
class ProcessPool:
    """Processes that work on items; `run` yields their results."""

    function: Callable[[Any], Any]
    items: Sequence[Any]
    stage: str
    name_of: Callable[[Any], str]
    size: int
    seconds: Sequence[float]  # that each item may take
    by_default: bool  # and whether nobody chose them
    workers: list[Worker] = field(default_factory=list)
    alone: deque[int] = field(default_factory=deque)  # items whose worker died, to be run once more
    heard: float = field(default_factory=time.monotonic)  # when a case was settled last, or its silence told
    looked: float = field(default_factory=time.monotonic)  # when the workers were looked at last
    started: bool = False  # a worker was ready once

    def run(self) -> Iterator[Result]:
        """Yield one result per item, in the order of completion; ends the processes, also when it is closed."""
        payload = pickle.dumps(self.function, protocol=5)
        self.needs_main = b"__main__" in payload + pickle.dumps(self.items[:1], protocol=5)
        waiting = deque(range(len(self.items)))
        try:
            while waiting or self.alone or self._busy():
                self._feed(payload, waiting, self.size)
                if not waiting and not self._busy() and self.alone:
                    self._stop_all()
                    self._feed(payload, deque([self.alone[0]]), 1)
                finished = self._collect()
                self._feed(payload, waiting, self.size)  # before the results are used, so that nobody waits
                yield from finished
        finally:
            self._stop_all()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.index is not None]

    def _feed(self, payload: bytes, waiting: deque[int], limit: int) -> None:
        while waiting:
            worker = next((w for w in self.workers if w.index is None), None)
            if worker is None:
                if len(self.workers) >= limit:
                    return
                worker = self._start()
                self.workers.append(worker)
                _send(worker, payload)
            worker.index, worker.since = waiting.popleft(), time.monotonic()
            worker.deadline = worker.since + (self.seconds[worker.index] if worker.ready else START_SECONDS)
            _send(worker, pickle.dumps(self.items[worker.index], protocol=5))

    def _start(self) -> Worker:
        context = _context(self.function, self.size)
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name=f"autoseg {self.stage}", daemon=True)
        one = self.size == 1  # it has the machine to itself, and as many threads as this process
        with (
            contextlib.nullcontext() if one else _environment_of_children(),
            contextlib.nullcontext() if self.needs_main else _main_hidden(),
        ):
            start_process(process, self.stage, START_SECONDS)
        theirs.close()
        return Worker(process, ours)

    def _collect(self) -> list[Result]:
        """Wait for something to happen, and return the cases that are settled by it."""
        self._forgive_pause()
        busy = self._busy()
        readable = set(pipes.wait([worker.connection for worker in busy], POLL_SECONDS))
        settled = []
        for worker in busy:
            worker.peak = max(worker.peak, _peak_of(worker.process.pid))
            if worker.connection in readable:
                outcome = self._receive(worker)
            elif time.monotonic() > worker.deadline:
                outcome = self._late(worker)
            else:
                continue
            if outcome is not None:
                settled.append(result_of(self._case(worker), self.stage, outcome))
                if worker.index in self.alone:
                    self.alone.remove(worker.index)
                worker.index = None
        self._watch(bool(settled))
        return settled

    def _forgive_pause(self) -> None:
        """Move the deadlines by the time in which nobody looked: the workers may have been stopped, too, by Ctrl-Z."""
        before, self.looked = self.looked, time.monotonic()
        if (pause := self.looked - before) > PAUSE_SECONDS:
            for worker in self.workers:
                worker.deadline += pause

    def _late(self, worker: Worker) -> Outcome | None:
        """Stop a worker that is beyond its deadline, and return the outcome of its item."""
        if not worker.ready:
            return self._not_started(worker)
        self._drop(worker)
        mend = f"; if such a case may take longer, set {VARIABLE}" if self.by_default else ""
        seconds = self.seconds[worker.index]
        return Outcome(reason=f"not done after {seconds:.4g} s, so it was stopped ({_memory(worker)}){mend}")

    def _not_started(self, worker: Worker) -> Outcome | None:
        self._drop(worker)
        if not self.started:
            raise not_started(self.stage, START_SECONDS)
        return self._again(worker, f"the worker process did not start within {START_SECONDS:g} s")

    def _watch(self, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self.heard = now
        elif now - self.heard >= SILENCE_SECONDS:
            self.heard = now
            busy = [(self._case(w), w.since, f", {_memory(w)}" if w.ready else ", starting") for w in self._busy()]
            tell_silence(self.stage, busy, SILENCE_SECONDS)

    def _receive(self, worker: Worker) -> Outcome | None:
        """Return what the worker sent, or why it died; None if the item is not settled yet."""
        try:
            if not worker.ready:
                worker.ready = self.started = worker.connection.recv() == "ready"
                worker.deadline = time.monotonic() + self.seconds[worker.index]
                return None
            outcome: Outcome = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            return self._died(worker)
        worker.peak = max(worker.peak, outcome.peak)
        return outcome

    def _died(self, worker: Worker) -> Outcome | None:
        worker.process.join()
        code = worker.process.exitcode
        self._drop(worker)
        if not worker.ready and code >= 0:
            raise UserError(
                f"the worker processes of stage {self.stage} cannot start (exit status {code}, see above)",
                mend="in a script, put the calls under `if __name__ == '__main__':`",
            )
        return self._again(worker, f"the worker process was ended by {_cause(code)} ({_memory(worker)})")

    def _again(self, worker: Worker, reason: str) -> Outcome | None:
        """Have the item of a lost worker run once more; the second time, return what became of it."""
        if worker.index in self.alone:
            return Outcome(reason=f"{reason}, twice")
        log.warning(
            "case %s, %s: %s; it is run once more, alone, after the others", self._case(worker), self.stage, reason
        )
        self.alone.append(worker.index)
        return None

    def _case(self, worker: Worker) -> str:
        return self.name_of(self.items[worker.index])

    def _drop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()

    def _stop_all(self) -> None:
        for worker in list(self.workers):
            if worker.index is not None:
                worker.process.kill()
            worker.connection.close()  # an idle worker leaves when its pipe closes
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self.workers.clear()


def _send(worker: Worker, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is met again when receiving
        worker.connection.send_bytes(content)


def _context(function: Callable[[Any], Any], size: int) -> Any:
    """Return how workers are started; a fork server has one thread for good, and pays for several workers only.

    It is reached by a file, for which there may be no place.
    """
    if sys.platform != "linux" or size == 1 or temporary_folder() is None:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    module = getattr(getattr(function, "func", function), "__module__", None)
    if module and module.startswith("autoseg."):
        context.set_forkserver_preload([module])
    return context


@contextlib.contextmanager
def _environment_of_children() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, ITK_THREADS)}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep children from importing the user's script again: they do not need it, and it may lack the usual guard."""
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _memory(worker: Worker) -> str:
    return f"memory high-water mark {worker.peak / 2**20:.0f} MiB" if worker.peak else "memory high-water mark unknown"


def _peak_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
