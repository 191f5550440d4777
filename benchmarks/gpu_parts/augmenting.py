"""What augmentation takes of the GPU: its own work, and the transfer to it, each by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
    for step in range(bench.sizes.augmented + WARM_UP):
        seconds, (cut, boxes) = bench.timed(partial(_cut, stream, step, bench.device))
        cut_seconds.append(seconds)
        seconds, moved = bench.timed(partial(_moved, cut, boxes, bench.device))
        moved_seconds.append(seconds)
        augmented_seconds.append(_device_seconds(bench, partial(stream.augment, moved, step, bench.device)))
    means = [sum(each[WARM_UP:]) / bench.sizes.augmented for each in (cut_seconds, moved_seconds, augmented_seconds)]
    return dict(zip(("cut_seconds", "transfer_seconds", "augmentation_seconds"), means, strict=True))


def _cut(stream: Any, step: int, device: Any) -> tuple[Any, list[Any]]:
    """Return the batch of a step, in pinned memory for a GPU as training has it, and the boxes that will be warped."""
    cut = stream.cut(step, device)
    return cut, [group() for group in cut.warps]


def _moved(cut: Any, boxes: list[Any], device: Any) -> Any:
    """Return the batch on the device, with its boxes there."""
    there = [box.to(device) for box in boxes]
    return replace(cut.to(device), warps=tuple(partial(there.__getitem__, place) for place in range(len(there))))


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
