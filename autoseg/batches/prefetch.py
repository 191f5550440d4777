"""Batches made ahead in threads, handed out in the order of steps."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Self

import torch

from autoseg.batches.batch import Batch
from autoseg.batches.side_stream import Made, SideStream
from autoseg.errors import AutosegError
from autoseg.waiting import AtWork


class Stream(Protocol):
    """What a prefetcher needs: the batch of any step."""

    def batch(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return the batch of a step on a device."""
        ...


class BatchError(AutosegError):
    """A batch could not be made; names the step and its cases."""

    def __init__(self, step: int, cases: tuple[str, ...], reason: str):
        self.step = step
        self.cases = cases
        self.reason = reason
        of = f" (cases {', '.join(cases)})" if cases else ""
        super().__init__(f"batch of step {step}{of}: {reason}")


class Prefetcher:
    """Make up to `depth` batches ahead of need in `threads` threads; with 0 threads each is made when asked for.

    Which thread makes a batch does not matter: batches come in the order of steps and depend on the step alone.
    `waited` is the time in seconds that `next` had to wait; a long wait is told, with what every thread is doing.
    """

    def __init__(self, stream: Stream, *, start: int, device: torch.device | str, threads: int, depth: int):
        self.waited = 0.0
        self._stream = stream
        self._device = device
        self._step = start  # of the next batch to be handed out
        self._pending: deque[Future[Made]] = deque()
        self._at_work = AtWork("training data", unit="batch", describe=self._described)
        # A thread takes its number of OpenMP threads from the last one set anywhere, at its first use of torch: the
        # calling thread must have its own before the threads of the pool, which use one, set theirs.
        torch.get_num_threads()
        self._side = SideStream(device if threads > 0 else "cpu")
        self._pool = ThreadPoolExecutor(threads, "autoseg-batches") if threads > 0 else None
        self._closed = False
        if self._pool is not None:
            for ahead in range(max(1, depth)):
                self._submit(start + ahead)

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            BatchError: the batch could not be made; the one after it is next.
        """
        if self._closed:
            raise RuntimeError("the prefetcher is closed")
        step, begin = self._step, time.perf_counter()
        self._step += 1
        try:
            if self._pool is None:
                return self._stream.batch(step, self._device)
            first = self._pending.popleft()
            self._submit(step + len(self._pending) + 1)
            return self._side.hand_out(self._at_work.result(first))
        except Exception as error:
            raise BatchError(step, self._cases_of(step), f"{type(error).__name__}: {error}") from error
        finally:
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """Drop what was made ahead and wait for the threads to end; may be called twice."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit(self, step: int) -> None:
        self._pending.append(self._pool.submit(self._make, step))

    def _make(self, step: int) -> Made:
        with self._at_work.on(step):
            return self._side.make(lambda: self._stream.batch(step, self._device))

    def _described(self, step: int) -> str:
        return f"of step {step} (cases {', '.join(self._cases_of(step)) or 'unknown'})"

    def _cases_of(self, step: int) -> tuple[str, ...]:
        tell = getattr(self._stream, "cases_of", None)
        return tuple(tell(step)) if tell is not None else ()
