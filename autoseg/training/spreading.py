"""Folds spread over several devices: one process per device, which trains its folds one after the other."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from autoseg.errors import AutosegError, Interrupted
from autoseg.training.stopping import StopRequest
from autoseg.worker_life import interrupts_kept_from_children, modules_of_this_process


def spread_folds(
    train: Callable[..., Any], arguments: Mapping[str, Any], folds: Sequence[str], devices: Sequence[str]
) -> None:
    """Call `train(**arguments)` in one process per device, each with its share of `folds`.

    Every fold gets the same time: the budget over the longest row of folds. A stop request is handed on to all
    processes, which end with their checkpoints. Raises Interrupted, or AutosegError with what went wrong where; the
    folds of other devices are finished before that.
    """
    budget = arguments["time_budget"]
    each = None if budget is None else budget / math.ceil(len(folds) / len(devices))
    jobs = []
    for position, device in enumerate(devices[: len(folds)]):
        own = folds[position :: len(devices)]
        time_budget = None if each is None else each * len(own)
        jobs.append({**arguments, "device": device, "folds": ",".join(own), "time_budget": time_budget})
    with StopRequest() as stop, _running(train, jobs) as running:
        while any(process.is_alive() for process, _ in running):
            for process, _ in running:
                if stop.asked and process.is_alive():
                    process.terminate()
                process.join(0.2)
        problems = [f"{job['device']}, folds {job['folds']}: {text}" for job, text in _problems(jobs, running)]
    if stop.asked:
        raise Interrupted(f"stopped by {stop.asked}; the checkpoints are complete")
    if problems:
        raise AutosegError("\n".join(problems))


@contextmanager
def _running(
    train: Callable[..., Any], jobs: Sequence[Mapping[str, Any]]
) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be used in forked processes
    running = []
    for job in jobs:
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_work, args=(train, dict(job), sender))
        # Ctrl-C reaches the whole group: the parent hands it on.
        with modules_of_this_process(), interrupts_kept_from_children():
            process.start()
        sender.close()
        running.append((process, receiver))
    try:
        yield running
    except KeyboardInterrupt:  # the second one: at once
        for process, _ in running:
            process.kill()
        raise
    finally:
        for process, receiver in running:
            process.join()
            receiver.close()


def _problems(
    jobs: Sequence[Mapping[str, Any]], running: Sequence[tuple[BaseProcess, Connection]]
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the jobs that ended with an error, and what it was."""
    for job, (process, receiver) in zip(jobs, running, strict=True):
        try:
            text = receiver.recv() if receiver.poll() else f"the process ended with exit code {process.exitcode}"
        except EOFError:
            text = f"the process ended with exit code {process.exitcode}"
        if text is not None:
            yield job, text


def _work(train: Callable[..., Any], arguments: Mapping[str, Any], sender: Connection) -> None:
    """Train in this process; what goes wrong travels as text, since not every exception can."""
    threading.Thread(target=_stop_without_parent, name="autoseg-parent", daemon=True).start()
    try:
        train(**arguments)
        sender.send(None)
    except AutosegError as error:
        sender.send(str(error))


def _stop_without_parent() -> None:
    """Ask this process to stop with a checkpoint once its parent is gone: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:  # None: called by a test, in no process of its own
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
