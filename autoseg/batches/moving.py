"""From the CPU to the device of a batch, without waiting for what the device is at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; to CUDA it goes from pinned memory, since any other copy waits for the GPU."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is made


def numbers_on(device: torch.device, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Return a few numbers as a tensor on `device`."""
    return to_device(torch.tensor(values, dtype=dtype), device)
