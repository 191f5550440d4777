"""What a plan is made for: device, its memory, the time at hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autoseg.devices import choose_device
from autoseg.errors import UserError
from autoseg.machine import available_cores, available_memory

GIB = 2**30
LEAST_GIB, MOST_GIB = 0.01, 100_000.0  # what the smallest plan takes, and more than any device has
GPU_SHARE = 0.92  # of a GPU's memory; the rest is left to the desktop and the driver


@dataclass(frozen=True)
class Resources:
    """Device kind, memory, time and workers that planning may count on."""

    device: str = "cpu"  # kind: cpu, cuda, mps
    memory_gib: float = 8.0  # memory of that device that one training may use
    time_budget: float | None = None  # seconds of training for one configuration's whole cross-validation
    workers: int = 1  # CPU cores
    memory_given: bool = False  # True: the user named the memory, False: it was measured

    def __post_init__(self) -> None:
        for option, value in (("--gpu-memory", self.memory_gib), ("--time-budget", self.time_budget)):
            if value is not None and not value > 0:
                raise UserError(f"must be positive, got {value:g}", where=option)

    @classmethod
    def detect(
        cls, device: str = "auto", *, gpu_memory: float | None = None, time_budget: float | None = None
    ) -> Resources:
        """Return the resources of this machine; a given `gpu_memory` (GiB) with device "auto" plans for a GPU."""
        cores = available_cores()
        if gpu_memory is not None:
            check_memory(gpu_memory)
            kind = "cuda" if device == "auto" else device.partition(":")[0]
            return cls(kind, float(gpu_memory), time_budget, cores, memory_given=True)
        chosen = choose_device(device)
        return cls(chosen.type, _free_memory(chosen) / GIB, time_budget, cores)

    def describe(self) -> dict[str, Any]:
        """Return the fields, for the plans file."""
        return asdict(self)


def check_memory(gib: float) -> None:
    """Raise UserError where a memory to plan for is none that a device has."""
    if not LEAST_GIB <= gib <= MOST_GIB:  # NaN neither
        raise UserError(
            f"a plan needs {LEAST_GIB:g} to {MOST_GIB:g} GiB, got {gib:g}", where="--gpu-memory",
            mend="give the memory of the GPU in GiB, such as --gpu-memory 8",
        )  # fmt: skip


def _free_memory(device: Any) -> float:
    """Return the bytes that training may take: most of a GPU, half of the free main memory."""
    if device.type == "cuda":
        import torch

        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return available_memory() / 2
