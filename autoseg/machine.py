"""What this machine gives: cores and memory, cut by affinity and by the cgroups of a container."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from autoseg.allocator import give_freed_memory_back


def available_cores(root: Path = Path("/")) -> int:
    """Return the cores this process may use: affinity, cut by the cgroup's quota (v1 and v2); at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, core_quota(root))))


def core_quota(root: Path = Path("/")) -> float:
    """Return how many cores' time the cgroups of this process leave it (v1 and v2); infinite without a quota."""
    cores = math.inf
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) / int(period))
    return cores


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes this process may still take: the system's available memory, cut by its cgroups' limits."""
    give_freed_memory_back()  # else it would count as taken
    available = _system_memory(root)
    for folder in _cgroup_folders(root, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _text(folder / limit), _text(folder / usage)
            if most.isdigit() and used.isdigit():
                stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
                reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                available = min(available, max(0, int(most) - int(used) + reclaimable))
    return available


def default_workers(bytes_per_worker: int) -> int:
    """Return how many workers fit: one per core, as long as four fifths of the free memory hold them; at least 1."""
    return max(1, min(available_cores(), int(0.8 * available_memory() / max(1, bytes_per_worker))))


def _system_memory(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows_memory()
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong) for name in ("total", "free", "page", "page_free", "virtual", "v_free", "ext")
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the cgroup folders that limit this process, the innermost first, for v2 and v1 mounts."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        inner = top / own.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
