"""What augmentation takes of the GPU: its own work, and the transfer to it, each by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_parts.bench import Bench

PAUSE = 60_000_000  # cycles of the GPU, some 30 ms, in which kernels queue up
WARM_UP = 3


def augmentation(bench: Bench, stream: Any) -> dict[str, float]:
    """Return the mean seconds of a batch: cut by the processor, moved to the device, augmented there.

    The patches lie on the device before their augmentation is timed, and its kernels wait in a queue until all are
    launched, unless it waits for one of them itself: launching them is no work of the GPU.
    """
    cut_seconds, moved_seconds, augmented_seconds = [], [], []
    pinned = bench.device.type == "cuda"  # as training has them
    for step in range(bench.sizes.augmented + WARM_UP):
        seconds, cut = bench.timed(partial(stream.cut, step, pinned=pinned))
        cut_seconds.append(seconds)
        seconds, moved = bench.timed(partial(cut.to, bench.device))
        moved_seconds.append(seconds)
        augmented_seconds.append(_device_seconds(bench, partial(stream.augment, moved, step, bench.device)))
    means = [sum(each[WARM_UP:]) / bench.sizes.augmented for each in (cut_seconds, moved_seconds, augmented_seconds)]
    return dict(zip(("cut_seconds", "transfer_seconds", "augmentation_seconds"), means, strict=True))


def _device_seconds(bench: Bench, function: Callable[[], Any]) -> float:
    """Return the seconds that the device works at what a function launches."""
    import torch

    if bench.device.type != "cuda":
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(PAUSE)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
