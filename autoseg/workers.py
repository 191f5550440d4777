"""The one worker pool: many cases, bounded in flight, and no case takes the others with it.

Processes are started once per worker and fed by a pipe, so that start-up (interpreter and imports) is paid once. On
Linux they come from a fork server that has the function's module loaded; elsewhere they are spawned. A worker process
has one core to itself: its numeric libraries are told to use one thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import connection as pipes
from pathlib import Path
from typing import Any, Literal

from autoseg.errors import AutosegError, CaseError, UserError
from autoseg.machine import available_cores, available_memory, default_workers

__all__ = ["Result", "available_cores", "available_memory", "default_workers", "run_cases"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # how often memory high-water marks and deadlines are looked at
SILENCE_SECONDS = 120.0  # after which it is told what every worker is doing, if none finished a case
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


@dataclass(frozen=True)
class Result:
    """What became of one case: a value, or the error that says why there is none."""

    case: str
    value: Any = None
    error: CaseError | None = None


def run_cases(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    stage: str,
    workers: int | None = None,
    kind: Literal["process", "thread"] = "process",
    timeout: float | None = None,
    progress: str | None = None,
    name_of: Callable[[Any], str] = str,
) -> Iterator[Result]:
    """Apply `function` to every item and yield one `Result` per item, in the order of completion.

    At most `workers` items (default: the available cores) are in flight. An exception becomes a `CaseError`: its
    reason is the message of a `UserError`, or type, message and place of any other exception, and its note holds the
    worker's traceback. A worker process that dies is reported with signal and memory high-water mark; its item is run
    once more, alone, after the others. An item that takes longer than `timeout` seconds is killed and reported.

    If no case is finished for two minutes, a warning tells what every worker is doing, and for how long.

    One worker or a single item, without a timeout, runs in this process: then there is no child to be killed in our
    place. Threads cannot be killed, so `timeout` needs processes. `function` and items must be picklable for
    processes. Closing the iterator, or Ctrl-C, ends the children.
    """
    items = list(items)
    if timeout is not None and kind == "thread":
        raise ValueError("threads cannot be killed: a timeout needs kind='process'")
    workers = max(1, min(workers or available_cores(), len(items)))
    if timeout is None and workers == 1:
        results = _run_here(function, items, stage, name_of)
    elif kind == "thread":
        results = _run_threads(function, items, stage, name_of, workers)
    else:
        results = _ProcessPool(function, items, stage, name_of, workers, timeout).run()
    if progress is None:
        yield from results
        return
    from tqdm import tqdm

    yield from tqdm(results, total=len(items), desc=progress, unit="case", disable=None)


def _run_here(
    function: Callable[[Any], Any], items: Sequence[Any], stage: str, name_of: Callable[[Any], str]
) -> Iterator[Result]:
    for item in items:
        yield _result(name_of(item), stage, _attempt(function, item))


def _run_threads(
    function: Callable[[Any], Any], items: Sequence[Any], stage: str, name_of: Callable[[Any], str], workers: int
) -> Iterator[Result]:
    waiting = iter(items)
    running: dict[Future, tuple[str, float]] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="autoseg") as pool:
        while True:
            while len(running) < workers and (item := next(waiting, pool)) is not pool:
                running[pool.submit(_attempt, function, item)] = name_of(item), time.monotonic()
            if not running:
                return
            done = wait(running, SILENCE_SECONDS, FIRST_COMPLETED).done
            if not done:
                _tell_silence(stage, [(case, since, "") for case, since in running.values()])
            for future in done:
                yield _result(running.pop(future)[0], stage, future.result())


def _tell_silence(stage: str, busy: Sequence[tuple[str, float, str]]) -> None:
    """Say what every worker is doing: case, start of its work (s, monotonic), and a remark."""
    now = time.monotonic()
    doing = "; ".join(f"case {case} for {now - since:.0f} s{remark}" for case, since, remark in busy)
    log.warning("%s: no case was finished for %g s; at work: %s", stage, SILENCE_SECONDS, doing)


@dataclass(frozen=True)
class _Outcome:
    """What a worker sends back: a value, or a reason and a traceback; and its memory high-water mark in bytes."""

    value: Any = None
    reason: str | None = None
    trace: str = ""
    peak: int = 0


def _attempt(function: Callable[[Any], Any], item: Any) -> _Outcome:
    try:
        return _Outcome(function(item), peak=_own_peak())
    except Exception as error:
        return _Outcome(reason=_reason(error), trace=traceback.format_exc(), peak=_own_peak())


def _reason(error: BaseException) -> str:
    if isinstance(error, AutosegError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _result(case: str, stage: str, outcome: _Outcome) -> Result:
    if outcome.reason is None:
        return Result(case, outcome.value)
    error = CaseError(case, stage, outcome.reason)
    if outcome.trace:
        error.add_note(f"traceback of the worker:\n{outcome.trace}")
    return Result(case, error=error)


def _serve(connection: pipes.Connection) -> None:
    """Run in a worker process: receive the function once, then items until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        function = pickle.loads(connection.recv_bytes())
        connection.send("ready")
        while True:
            item = connection.recv_bytes()
            outcome = _attempt(lambda content: function(pickle.loads(content)), item)
            try:
                answer = pickle.dumps(outcome, protocol=5)
            except Exception as error:
                answer = pickle.dumps(_Outcome(reason=_reason(error), trace=traceback.format_exc()))
            connection.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@dataclass
class _Worker:
    process: Any
    connection: pipes.Connection
    index: int | None = None  # the item in flight
    deadline: float = math.inf
    since: float = 0.0  # when it got the item
    ready: bool = False
    peak: int = 0


@dataclass
class _ProcessPool:
    function: Callable[[Any], Any]
    items: Sequence[Any]
    stage: str
    name_of: Callable[[Any], str]
    size: int
    timeout: float | None
    workers: list[_Worker] = field(default_factory=list)
    alone: deque[int] = field(default_factory=deque)  # items whose worker died, to be run once more
    heard: float = field(default_factory=time.monotonic)  # when a case was settled last, or its silence told

    def run(self) -> Iterator[Result]:
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

    def _busy(self) -> list[_Worker]:
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
            worker.deadline = self._deadline() if worker.ready else math.inf  # starting up is not the item's time
            _send(worker, pickle.dumps(self.items[worker.index], protocol=5))

    def _start(self) -> _Worker:
        context = _context(self.function)
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name=f"autoseg {self.stage}", daemon=True)
        with _environment_of_children(), contextlib.nullcontext() if self.needs_main else _main_hidden():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _deadline(self) -> float:
        return math.inf if self.timeout is None else time.monotonic() + self.timeout

    def _collect(self) -> list[Result]:
        """Wait for something to happen, and return the cases that are settled by it."""
        busy = self._busy()
        readable = set(pipes.wait([worker.connection for worker in busy], POLL_SECONDS))
        settled = []
        for worker in busy:
            worker.peak = max(worker.peak, _peak_of(worker.process.pid))
            if worker.connection in readable:
                outcome = self._receive(worker)
            elif time.monotonic() > worker.deadline:
                self._drop(worker)
                outcome = _Outcome(reason=f"not done after {self.timeout:g} s, so it was stopped ({_memory(worker)})")
            else:
                continue
            if outcome is not None:
                settled.append(_result(self._case(worker), self.stage, outcome))
                if worker.index in self.alone:
                    self.alone.remove(worker.index)
                worker.index = None
        self._watch(bool(settled))
        return settled

    def _watch(self, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self.heard = now
        elif now - self.heard >= SILENCE_SECONDS:
            self.heard = now
            busy = [(self._case(w), w.since, f", {_memory(w)}" if w.ready else ", starting") for w in self._busy()]
            _tell_silence(self.stage, busy)

    def _receive(self, worker: _Worker) -> _Outcome | None:
        """Return what the worker sent, or why it died; None if the item is not settled yet."""
        try:
            if not worker.ready:
                worker.ready = worker.connection.recv() == "ready"
                worker.deadline = self._deadline()
                return None
            outcome: _Outcome = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            return self._died(worker)
        worker.peak = max(worker.peak, outcome.peak)
        return outcome

    def _died(self, worker: _Worker) -> _Outcome | None:
        worker.process.join()
        code = worker.process.exitcode
        self._drop(worker)
        if not worker.ready and code >= 0:
            raise UserError(
                f"the worker processes of stage {self.stage} cannot start (exit status {code}, see above)",
                mend="in a script, put the calls under `if __name__ == '__main__':`, or use one worker",
            )
        reason = f"the worker process was ended by {_cause(code)} ({_memory(worker)})"
        if worker.index in self.alone:
            return _Outcome(reason=f"{reason}, twice")
        log.warning(
            "case %s, %s: %s; it is run once more, alone, after the others", self._case(worker), self.stage, reason
        )
        self.alone.append(worker.index)
        return None

    def _case(self, worker: _Worker) -> str:
        return self.name_of(self.items[worker.index])

    def _drop(self, worker: _Worker) -> None:
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


def _send(worker: _Worker, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is met again when receiving
        worker.connection.send_bytes(content)


def _context(function: Callable[[Any], Any]) -> Any:
    if sys.platform != "linux":
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


def _memory(worker: _Worker) -> str:
    return f"memory high-water mark {worker.peak / 2**20:.0f} MiB" if worker.peak else "memory high-water mark unknown"


def _own_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
