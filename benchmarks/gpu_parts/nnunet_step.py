"""Training steps of nnU-Net: on one batch that lies on the GPU; fed by its own augmenters where nnunetv2 is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_parts import nnunet_own
from gpu_parts.bench import Bench
from gpu_parts.networks import nnunet_network
from gpu_parts.nnunet_stated import TrainingStep, as_nnunet_sets_torch
from gpu_parts.sizes import BATCH, CORES
from gpu_parts.volumes import LABELS

AHEAD = 6 + 2 * CORES  # batches that its augmenters keep ready or have under way


def measure(bench: Bench, *, network: str, compile_only: bool = False) -> None:
    """Make a few steps, which compile and choose kernels; then time, on as many cores as training is to have."""
    as_nnunet_sets_torch(bench.device)
    step, trainer = _step(bench, network)
    batch = _batch(bench)
    bench.seconds(lambda: step(batch), least=bench.sizes.warm_up)
    if compile_only:
        return
    bench.bind()
    alone = bench.seconds_of_step(lambda: step(batch))
    bench.tell(samples_per_second=BATCH / alone, step_seconds=alone, peak_bytes=bench.peak_bytes)
    if trainer is not None:
        bench.tell(**_fed(bench, step, trainer))


def _step(bench: Bench, network: str) -> tuple[Callable[[Any], Any], Any]:
    """Return what makes a step, and nnunetv2's trainer, None where it is not here."""
    try:
        trainer = nnunet_own.make_trainer(bench, network)
    except nnunet_own.Absent as absent:
        bench.tell(whose=f"network of dynamic-network-architectures, loss and step stated here; {absent}")
        module = nnunet_network(bench.sizes, network, outputs=len(LABELS)).to(bench.device).train()
        stated = TrainingStep(module, len(bench.sizes.features) - 1, bench.device)
        bench.tell(compiled=stated.compiles)
        return stated, None
    bench.tell(whose=f"all of {nnunet_own.version()}", compiled=trainer._do_i_compile())
    return trainer.train_step, trainer


def _batch(bench: Bench) -> dict[str, Any]:
    """Return a batch on the device, with a target for every output."""
    label = torch.randint(0, len(LABELS), (BATCH, 1, *bench.sizes.patch), dtype=torch.int16, device=bench.device)
    scales = [2**level for level in range(len(bench.sizes.features) - 1)]
    return {
        "data": bench.random_image(*bench.sizes.patch),
        "target": [label[(..., *[slice(None, None, scale)] * 3)].contiguous() for scale in scales],
    }  # fmt: skip


def _fed(bench: Bench, step: Callable[[Any], Any], trainer: Any) -> dict[str, Any]:
    """Return the speed with batches of nnunetv2's augmenters, once those made ahead are used up."""
    with nnunet_own.loader(trainer) as batches:
        settle = 0 if bench.toy else AHEAD
        bench.seconds(lambda: step(next(batches)), bench.sizes.settle, least=1 + settle)
        seconds = bench.seconds(lambda: step(next(batches)), bench.sizes.fed, least=bench.sizes.fewest)
    return {"fed_samples_per_second": BATCH / seconds, "fed_step_seconds": seconds}
