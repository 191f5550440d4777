"""`autoseg doctor`: what this machine gives, and what will be the bottleneck."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

from autoseg import __version__
from autoseg.cli.options import Debug, Json, WorkspaceFolder
from autoseg.cli.output import echo_json

GIB = 2**30
DISK_TEST_BYTES = 64 * 2**20
SLOW_DISK = 80.0  # MB/s below which a training waits for patches
# One core runs the steps, another cuts 25 batches of two patches of 96 x 160 x 160 a second (measured, from compressed
# blocks; twice as many from memory): more than a GPU trains. What augments them runs on the GPU.
FEW_CORES_PER_GPU = 2
LITTLE_MEMORY = 8.0  # GiB below which large volumes force single-worker preprocessing


def doctor(
    workspace: WorkspaceFolder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what this machine gives. Cores, memory, disk, GPU, versions, and the predicted bottleneck.

    \b
    Example:
      autoseg doctor
    """
    from autoseg.workspace import Workspace

    facts = examine(Workspace.open(workspace).root)
    if json:
        echo_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_in_words(value)}")


def examine(root: Path) -> dict[str, Any]:
    """Return what was found; memory and disk space in GiB, disk speed in MB/s."""
    import torch

    from autoseg.cli.hardware import (
        cpu_instructions,
        describe_gpus,
        free_shared_memory,
        small_shared_memory,
        unused_gpu,
    )
    from autoseg.devices import choose_device, choose_precision, cpu_has_bf16
    from autoseg.machine import available_cores, available_memory, core_quota

    device, gpus, quota = choose_device(), describe_gpus(), core_quota()
    write_speed, read_speed, free = disk_speed(root)
    facts: dict[str, Any] = {
        "autoseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "cores_of_machine": os.cpu_count(),
        "core_quota": None if math.isinf(quota) else round(quota, 2),
        "torch_threads": min(torch.get_num_threads(), available_cores()),
        "memory_gib": round(available_memory() / GIB, 1),
        "memory_of_machine_gib": _memory_of_machine(),
        "shared_memory_free_gib": free_shared_memory(),
        "workspace": str(root),
        "disk_free_gib": round(free, 1),
        "disk_write_mb_s": write_speed,
        "disk_read_mb_s": read_speed,
        "device": str(device),
        "gpus": gpus,
        "cpu_instructions": cpu_instructions(),
        "cpu_formats": ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"],
        "precision": choose_precision("auto", device),
    }
    told = {"unused_gpu": unused_gpu(), "shared_memory": small_shared_memory(len(gpus))}
    facts |= {name: text for name, text in told.items() if text}
    return facts | {"bottleneck": bottleneck(facts)}


def bottleneck(facts: dict[str, Any]) -> str:
    """Return in words what will limit a training here, and what helps."""
    if facts["disk_free_gib"] < 5:
        return "disk space: less than 5 GiB are free for the workspace; give another --workspace"
    if "unused_gpu" in facts:
        return facts["unused_gpu"]
    if facts["memory_gib"] < LITTLE_MEMORY:
        return "memory: large volumes will be prepared one at a time; close other programs or give more memory"
    if facts["device"] == "cpu":
        return "the network itself, on this CPU: give --time-budget, so that plan and schedule fit the time you have"
    cores_per_gpu = facts["cores"] / max(1, len(facts["gpus"]))
    if cores_per_gpu < FEW_CORES_PER_GPU:
        return f"preparing patches: {cores_per_gpu:g} core(s) per GPU; reserve at least {FEW_CORES_PER_GPU}"
    if facts["disk_read_mb_s"] < SLOW_DISK:
        return "reading patches from disk: put the workspace on a local SSD"
    return "the network itself, on the GPU: this is as it should be"


def disk_speed(root: Path) -> tuple[float, float, float]:
    """Return write and read speed in MB/s and the free GiB where `root` is, or will be."""
    place = root.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    size = min(DISK_TEST_BYTES, free // 4)
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=place if os.access(place, os.W_OK) else None) as file:
        start = time.perf_counter()
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, not from memory
        file.seek(0)
        amount = 0
        while part := file.read(2**20):
            amount += len(part)
        done = time.perf_counter()
    return round(amount / 1e6 / (written - start)), round(amount / 1e6 / (done - written)), free / GIB


def _memory_of_machine() -> float | None:
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1)


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
