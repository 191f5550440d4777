"""Training steps of autoseg: fed by threads, and from one batch; the augmentation; what the card gives of its rate."""

from __future__ import annotations

from typing import Any

from gpu_parts.augmenting import augmentation
from gpu_parts.bench import Bench
from gpu_parts.sizes import BATCH, Sizes
from gpu_parts.traffic import Traffic
from gpu_parts.training import Constant, Counted, Steps, Training


def measure(
    bench: Bench, *, network: str, compile_only: bool = False, augments: bool = True, layout: str = "contiguous"
) -> None:
    """Train a little on one batch, which compiles; then time, on as many cores as training is to have."""
    training = Training(bench, network, channels_last=layout == "channels_last")
    name, stream = training.stream()
    constant = {name: Constant(stream.batch(0, bench.device))}
    training.steps(constant, least=bench.sizes.warm_up)
    bench.tell(compiled=training.compiled, precision=training.run.precision, layout=layout, **_graphs())
    if compile_only:
        return
    bench.bind()
    before = _alone(bench, training, constant)
    bench.tell(step_seconds_alone=before)
    if layout == "channels_last":
        return
    fed = _fed(training, name, stream, bench.sizes, bench.sizes.fed)
    alone = (before + _alone(bench, training, constant)) / 2  # around the other: the card may get slower
    told = {**_told(fed, alone), "step_seconds_alone": alone, "peak_bytes": bench.peak_bytes}
    bench.tell(**told, **_graphs())
    bench.tell(**_work(bench, network, constant))
    if augments:
        bench.tell(**augmentation(bench, stream))
        uncached = _fed(training, name, training.uncached_stream(), bench.sizes, bench.sizes.fed / 2)
        told = _told(uncached, alone)
        bench.tell(**{f"uncached_{key}": told[key] for key in ("samples_per_second", "waiting_share")})


def _alone(bench: Bench, training: Training, constant: dict[str, Any]) -> float:
    """Return the seconds of a step that never waits for data."""
    return training.steps(constant, settle_steps=2, lasting=bench.sizes.alone, least=bench.sizes.fewest).seconds


def _fed(training: Training, name: str, stream: Any, sizes: Sizes, lasting: float) -> Steps:
    """Return steps as training makes them, once the number of batches made ahead has settled."""
    return training.steps(
        {name: Counted(stream)}, settle=sizes.settle, settle_steps=sizes.settle_steps, lasting=lasting,
        least=sizes.fewest,
    )  # fmt: skip


def _told(fed: Steps, alone: float) -> dict[str, Any]:
    """Return figures of steps that are fed, beside those of a step on one batch."""
    seconds = fed.sustained_seconds
    return {
        "samples_per_second": BATCH / seconds, "step_seconds": seconds, "step_seconds_as_timed": fed.seconds,
        "steps_timed": fed.count, "batches_made_meanwhile": fed.made, "waiting_share": (seconds - alone) / seconds,
        "idle_share": fed.idle_seconds / fed.seconds,
    }  # fmt: skip


def _work(bench: Bench, network: str, constant: dict[str, Any]) -> dict[str, Any]:
    """Return the operations and bytes of a step, counted uncompiled, and what it takes so."""
    from autoseg.training.operations import operation_counter

    training = Training(bench, network, compiled=False)
    training.steps(constant, least=1)  # the optimiser makes its state
    step = {"settle_steps": 0, "least": 1}
    with operation_counter() as operations, Traffic() as traffic:
        one = training.steps(constant, **step).count
    steps = one + 1  # the end of the first is where timing begins
    seconds = training.steps(constant, settle_steps=2, lasting=bench.sizes.alone / 5, least=2).seconds
    return {
        "step_flops": operations.get_total_flops() / steps, "step_bytes": traffic.bytes / steps,
        "convolution_bytes": traffic.convolution_bytes / steps, "step_seconds_uncompiled": seconds,
    }  # fmt: skip


def _graphs() -> dict[str, int]:
    """Return how many graphs were compiled in this process, and at how many places one broke off."""
    from torch._dynamo.utils import counters

    return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
