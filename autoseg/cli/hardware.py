"""What `doctor` tells of processor and GPUs: number formats, free memory, and a GPU that torch cannot use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

GIB = 2**30
CPU_FORMATS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "avx512_fp16": "AVX-512 FP16",
    "amx_bf16": "AMX BF16", "amx_fp16": "AMX FP16",
}  # fmt: skip
GPU_FORMATS = {"fp16": (7, 0), "bf16": (8, 0), "tf32": (8, 0)}  # compute capability from which matrix units have it
LITTLE_SHARED_MEMORY = 1.0  # GiB that NCCL, by which several GPUs train one fold, is recommended to have
CUDA_BUILD = "install one that has CUDA: https://pytorch.org/get-started/locally"


def cpu_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the vector and matrix instructions of this processor that matter here, [] where Linux does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return [name for flag, name in CPU_FORMATS.items() if flag in flags]


def describe_gpus() -> list[str]:
    """Return each GPU's name, memory and free memory, compute capability and the formats that it multiplies fast."""
    import torch

    return [_describe(torch.cuda.get_device_properties(i), _free(i)) for i in range(torch.cuda.device_count())]


def _describe(gpu: Any, free: int | None) -> str:
    formats = [name for name, least in GPU_FORMATS.items() if (gpu.major, gpu.minor) >= least]
    room = "" if free is None else f", {free / GIB:.1f} GiB free"
    return (
        f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB{room}, compute capability {gpu.major}.{gpu.minor} "
        f"({', '.join(['fp32', *formats])})"
    )


def _free(index: int) -> int | None:
    """Return the free bytes of a GPU; None where it answers with an error, which must not end `doctor`."""
    import torch

    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        return None


def unused_gpu(root: Path = Path("/")) -> str | None:
    """Return why torch cannot use the NVIDIA GPU that is here, and the mend; None if it can, or there is none."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # hidden on purpose
        return None
    if torch.cuda.is_available() or not ((root / "proc/driver/nvidia").is_dir() or shutil.which("nvidia-smi")):
        return None
    if torch.version.cuda is None:
        return f"an NVIDIA GPU is not used: this torch ({torch.__version__}) is built without CUDA; {CUDA_BUILD}"
    return (
        f"an NVIDIA GPU is not used: torch, built for CUDA {torch.version.cuda}, does not find it; look whether "
        "nvidia-smi lists it here, its driver is new enough, CUDA_VISIBLE_DEVICES hides it, or a container lacks it "
        "(docker run --gpus all)"
    )


def free_shared_memory(folder: Path = Path("/dev/shm")) -> float | None:
    """Return how many GiB are free in /dev/shm, None where there is none."""
    return round(shutil.disk_usage(folder).free / GIB, 2) if folder.is_dir() else None


def small_shared_memory(gpus: int, folder: Path = Path("/dev/shm")) -> str | None:
    """Return what is said of a small /dev/shm where it matters: to several GPUs that train one fold."""
    if gpus < 2 or not folder.is_dir():
        return None
    free = shutil.disk_usage(folder).free / GIB
    if free >= LITTLE_SHARED_MEMORY:
        return None
    return (
        f"{free:.2f} GiB in {folder}, little for NCCL, which --processes uses; start the container with --shm-size=1g "
        "or --ipc=host"
    )
