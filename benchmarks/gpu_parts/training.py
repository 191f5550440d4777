"""autoseg's training of a network on the data made: its own loop, some seconds at a time, with marks at each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_parts.bench import Bench
from gpu_parts.sizes import CORES

Streams = Mapping[str, Any]
ENOUGH = 10**9  # steps: no run gets that far
UNDER_WAY = 2  # batches by which what was made and what was used differ by chance


@dataclass(frozen=True)
class Steps:
    """Steps that were timed one after the other, in seconds of the device."""

    count: int
    seconds: float  # of one step
    idle_seconds: float  # of one step, in which the device had nothing to do between it and the one before
    made: int | None  # batches that the stream made meanwhile; None: it does not count

    @property
    def sustained_seconds(self) -> float:
        """Return what a step takes where those made ahead are used up: no more are made than were meanwhile."""
        if self.made is None or not self.made:
            return self.seconds
        return self.seconds * self.count / min(self.count, self.made + UNDER_WAY)


class Constant:
    """A stream that always gives the same batch, which lies on the device."""

    def __init__(self, batch: Any):
        self._batch = batch

    def batch(self, step: int, device: Any = "cpu") -> Any:
        """Return the batch."""
        return self._batch

    def cases_of(self, step: int) -> tuple[str, ...]:
        """Return the cases of the batch."""
        return self._batch.cases


class Counted:
    """A stream that counts the batches it made."""

    def __init__(self, stream: Any):
        self._stream, self._made = stream, []

    def batch(self, step: int, device: Any = "cpu") -> Any:
        """Return the batch of a step."""
        batch = self._stream.batch(step, device)
        self._made.append(step)  # threads may do so at once
        return batch

    @property
    def made(self) -> int:
        """Return the number of batches so far."""
        return len(self._made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Training:
    """A run that has not begun, as `autoseg train` sets it up."""

    def __init__(self, bench: Bench, network: str, *, compiled: bool = True, channels_last: bool = False):
        from autoseg.training import costs

        self._device = bench.device
        training, context = costs._training(
            bench.raw, "3d_fullres", plans_name=network, fold="all", threads=CORES, device=bench.device.type,
            workspace=bench.workspace,
        )  # fmt: skip
        settings = training.settings if compiled else costs._uncompiled(training.settings)
        kind = _laid_out(training.trainer_class) if channels_last else training.trainer_class
        self.run = costs._prepared(kind, context, settings, CORES)

    @property
    def compiled(self) -> bool:
        """Return whether the network is compiled; `module` of what Fabric wraps is the one before that."""
        from torch._dynamo import OptimizedModule

        network = self.run.trainer.modules["network"]
        return isinstance(getattr(network, "_forward_module", network), OptimizedModule)

    def stream(self) -> tuple[str, Any]:
        """Return the name of the one stream of patches, and the stream."""
        ((name, stream),) = self.run.trainer.build_streams().items()
        return name, stream

    def uncached_stream(self) -> Any:
        """Return the stream from a store that decompresses every patch anew."""
        from autoseg.store import CaseStore

        _, stream = self.stream()
        stream.store = CaseStore(stream.store.folder, cache=False)
        return stream

    def steps(
        self, streams: Streams, *, settle: float = 0.0, settle_steps: int = 1, lasting: float = 0.0, least: int = 1
    ) -> Steps:
        """Train until steps have settled, then until at least so many have lasted at least so long."""
        from autoseg.training.loop import fit

        run, trainer = self.run, self.run.trainer
        marks = _Marks(self._device, [stream for stream in streams.values() if isinstance(stream, Counted)])
        training_step, after_step = trainer.training_step, trainer.after_step

        def begin(batches: Any, progress: float) -> Any:
            marks.begin()
            return training_step(batches, progress)

        def end(progress: float) -> None:
            after_step(progress)
            if marks.end(settle=settle, settle_steps=settle_steps, lasting=lasting, least=least):
                run.clock.steps = trainer.step + 1

        hooks: dict[str, Callable[..., Any]] = {
            "build_streams": lambda: dict(streams), "training_step": begin, "after_step": end,
        }  # fmt: skip
        run.clock.steps = ENOUGH
        vars(trainer).update(hooks)
        try:
            fit(run)
        finally:
            for name in hooks:
                del vars(trainer)[name]
        return marks.steps()


@dataclass
class _Marks:
    """When steps began and ended: events of the device, or times of the processor that is the device."""

    device: Any
    counted: list[Counted]
    begins: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    first: int = 0  # index of the end from which it counts
    since: float = math.inf  # time.monotonic() of that end, as the processor sees it
    made: tuple[int, int] = (0, 0)  # batches, then and now
    started: float = math.inf  # time.monotonic() of the first end

    def begin(self) -> None:
        """Mark that a step begins: its batch is there."""
        self.begins.append(self._now())

    def end(self, *, settle: float, settle_steps: int, lasting: float, least: int) -> bool:
        """Mark that a step has ended; returns whether it was the last."""
        self.ends.append(self._now())
        now, made = time.monotonic(), sum(stream.made for stream in self.counted)
        self.started = min(self.started, now)
        if self.since == math.inf:
            if len(self.ends) >= settle_steps and now - self.started >= settle:
                self.first, self.since, self.made = len(self.ends) - 1, now, (made, made)
            return False
        self.made = (self.made[0], made)
        return len(self.ends) - 1 - self.first >= least and now - self.since >= lasting

    def steps(self) -> Steps:
        """Return what was timed; waits for the device."""
        ends, begins = self.ends[self.first :], self.begins[self.first + 1 :]
        count = len(ends) - 1
        idle = sum(self._between(before, begin) for before, begin in zip(ends[:-1], begins, strict=True))
        made = self.made[1] - self.made[0] if self.counted else None
        return Steps(count, self._between(ends[0], ends[-1]) / count, idle / count, made)

    def _now(self) -> Any:
        import torch

        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, after: Any) -> float:
        if self.device.type != "cuda":
            return after - before
        after.synchronize()
        return before.elapsed_time(after) / 1000


def _laid_out(kind: type) -> type:
    """Return the trainer whose modules have their channels last in memory."""
    import torch

    class ChannelsLast(kind):
        """The same training in another layout."""

        def prepare(self) -> Any:
            modules = super().prepare()
            for module in modules.values():
                module.to(memory_format=torch.channels_last_3d)
            return modules

    return ChannelsLast
