"""How long a training step takes on this machine: a few real steps, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from autoseg.devices import choose_precision, cpu_has_bf16, lay_out_for_cpu, prepare_to_compute
from autoseg.machine import available_cores
from autoseg.plans import NetworkSpec
from autoseg.training.bare_step import DTYPES, make_optimizer, training_loss

MOST_STEPS = 6  # after one to warm up
THREAD_GAIN = 0.7  # n threads make a step faster by n to this power: 1.6 on 2 cores (measured)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step, and the number format it ran in."""

    seconds: float
    precision: str


def time_step(
    architecture: type[nn.Module],
    spec: NetworkSpec,
    batch_size: int,
    *,
    device: str = "cpu",
    optimizer: str = "adamw",
    patience: float = 2.0,
) -> StepTime:
    """Return the time of the fastest of a few training steps (network, loss, optimiser; not the data).

    Both bf16 and fp32 are timed where the CPU multiplies bf16, and the faster one counts; GPUs run what training
    takes there. Each measurement starts no further step once `patience` seconds are over.
    """
    prepare_to_compute(torch.device(device))
    formats = [choose_precision("auto", torch.device(device))]
    if device == "cpu":
        formats = ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]
    times = []
    for precision in formats:
        with torch.random.fork_rng(devices=[]):
            step = _make_step(architecture, spec, batch_size, device, optimizer, precision)
        times.append(StepTime(_seconds(step, device, patience), precision))
    return min(times, key=lambda timed: timed.seconds)


def _seconds(step: Callable[[], None], device: str, patience: float) -> float:
    """Return the seconds of one step with all threads.

    On a CPU that is busy with other things this says nothing about training later: then the processor time of a step
    on one thread is taken, which other work does not lengthen, and divided by what the threads usually gain.
    """
    if device != "cpu" or not _is_busy():
        return _fastest(step, time.perf_counter, patience)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fastest(step, time.process_time, patience) / threads**THREAD_GAIN
    finally:
        torch.set_num_threads(threads)


def _is_busy() -> bool:
    """Return whether other processes kept at least half of the cores busy in the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > max(1.0, available_cores() / 2)


def _fastest(step: Callable[[], None], clock: Callable[[], float], patience: float) -> float:
    started = time.perf_counter()
    step()
    times = []
    while len(times) < MOST_STEPS and not (times and time.perf_counter() - started > patience):
        before = clock()
        step()
        times.append(clock() - before)
    return max(min(times), 1e-6)


def _make_step(
    architecture: type[nn.Module], spec: NetworkSpec, batch_size: int, device: str, optimizer: str, precision: str
) -> Callable[[], None]:
    network = architecture(spec).to(device).train()
    if device == "cpu":  # as training does
        lay_out_for_cpu(network, spec.dims)
    updater = make_optimizer(optimizer, list(network.parameters()))
    image = torch.randn(batch_size, spec.in_channels, *spec.patch_size, device=device)
    target = torch.randint(0, spec.num_outputs, (batch_size, *spec.patch_size), device=device)

    def step() -> None:
        with torch.autocast(image.device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = network(image)
        training_loss(logits, target).backward()
        updater.step()
        updater.zero_grad(set_to_none=True)
        float(next(network.parameters()).detach().flatten()[0])  # waits for the device

    return step
