"""Many cases, bounded in flight, and no case takes the others with it."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

from autoseg.crash_guard import guarded
from autoseg.deadlines import case_seconds
from autoseg.machine import available_cores, available_memory, default_workers
from autoseg.waiting import SILENCE_SECONDS, tell_silence
from autoseg.watching import watched
from autoseg.worker_pool import ProcessPool
from autoseg.worker_results import Outcome, Result, attempt, result_of

__all__ = ["Result", "available_cores", "available_memory", "default_workers", "run_cases"]

log = logging.getLogger(__name__)

SMALL_BYTES = 2**22  # files of all items together, up to which a process of its own would take longer than the work


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
    size_of: Callable[[Any], int] | None = None,
) -> Iterator[Result]:
    """Apply `function` to every item and yield one `Result` per item, in the order of completion.

    At most `workers` items (default: the available cores) are in flight. An exception becomes a `CaseError`: its
    reason is the message of a `UserError`, or type, message and place of any other exception, and its note holds the
    worker's traceback. A worker process that dies is reported with signal and memory high-water mark; its item is run
    once more, alone, after the others. An item that takes longer than `timeout` seconds is killed and reported; the
    default is an hour and more for large items, see `deadlines`, math.inf is no limit.

    If no case is finished for two minutes, a warning tells what every worker is doing, and for how long.

    `size_of` tells the bytes of an item's files. With one worker, items that are small all together run in this
    process. There, and in threads, a crash of the interpreter ends the command, naming the case; called again with the
    same items, processes are used. Threads cannot be killed, so `timeout` needs processes. `function` and items must be
    picklable for processes. Closing the iterator, or Ctrl-C, ends the children.
    """
    items = list(items)
    if timeout is not None and kind == "thread":
        raise ValueError("threads cannot be killed: a timeout needs kind='process'")
    workers = max(1, min(workers or available_cores(), len(items)))
    seconds = [case_seconds(size_of(item) if size_of else 0) if timeout is None else timeout for item in items]
    pool = ProcessPool(function, items, stage, name_of, workers, seconds, timeout is None)
    if timeout is None and workers == 1 and (kind == "thread" or _small(items, size_of)):
        results = _guarded(_run_here(function, items, stage, name_of), pool)
    elif kind == "thread":
        results = _guarded(_run_threads(function, items, stage, name_of, workers), pool)
    else:
        results = pool.run()
    if progress is None:
        yield from results
        return
    from tqdm import tqdm

    yield from tqdm(results, total=len(items), desc=progress, unit="case", disable=None)


def _small(items: Sequence[Any], size_of: Callable[[Any], int] | None) -> bool:
    """Return whether one worker may be this process; a daemon, such as a worker, can have no child anyway."""
    return _is_daemon() or (size_of is not None and sum(map(size_of, items)) <= SMALL_BYTES)


def _is_daemon() -> bool:
    return multiprocessing.current_process().daemon


def _guarded(here: Iterator[Result], pool: ProcessPool) -> Iterator[Result]:
    """Yield results of work in this process; of a pool, if an earlier process died of the same work."""
    with guarded(pool.stage, [repr(item) for item in pool.items]) as guard:
        if not guard.died or _is_daemon():
            yield from here
            return
        pool.size = min(pool.size, available_cores())  # there may be many threads
        log.info(
            "%s: an earlier command ended while it was at these cases, by a crash or killed from outside; in case one "
            "of them was the cause, they are now handled in processes of their own, which changes no result",
            pool.stage,
        )
        failed = False
        for result in pool.run():
            failed |= result.error is not None
            yield result
        guard.again = failed


def _run_here(
    function: Callable[[Any], Any], items: Sequence[Any], stage: str, name_of: Callable[[Any], str]
) -> Iterator[Result]:
    for item in items:
        name = f"case {name_of(item)}, {stage}"
        watch = contextlib.nullcontext() if _is_daemon() else watched(name, kind=stage)  # a worker has its deadline
        with _crash_told(), watch:
            outcome = _under_name(name)(function, item)
        yield result_of(name_of(item), stage, outcome)


@contextlib.contextmanager
def _crash_told() -> Iterator[None]:
    """Have the interpreter write what it was at if it is ended by a fault in compiled code."""
    on = faulthandler.is_enabled()
    with contextlib.suppress(AttributeError, RuntimeError, ValueError, OSError):  # no standard error, as in a window
        faulthandler.enable()
    try:
        yield
    finally:
        if not on:
            faulthandler.disable()


def _under_name(name: str) -> Callable[[Callable[[Any], Any], Any], Outcome]:
    """Return `attempt` called `name`: the function names on the stack are all that is told of a crash."""
    return types.FunctionType(attempt.__code__.replace(co_name=name), attempt.__globals__)


def _run_threads(
    function: Callable[[Any], Any], items: Sequence[Any], stage: str, name_of: Callable[[Any], str], workers: int
) -> Iterator[Result]:
    waiting = iter(items)
    running: dict[Future, tuple[str, float]] = {}
    with _crash_told(), ThreadPoolExecutor(workers, thread_name_prefix="autoseg") as pool:
        while True:
            while len(running) < workers and (item := next(waiting, pool)) is not pool:
                named = _under_name(f"case {name_of(item)}, {stage}")
                running[pool.submit(named, function, item)] = name_of(item), time.monotonic()
            if not running:
                return
            with watched(stage, silent=True):  # what the threads do is told below
                done = wait(running, SILENCE_SECONDS, FIRST_COMPLETED).done
            if not done:
                tell_silence(stage, [(case, since, "") for case, since in running.values()], SILENCE_SECONDS)
            for future in done:
                yield result_of(running.pop(future)[0], stage, future.result())
