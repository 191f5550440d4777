"""Starts a command again with glibc's allocator set up for networks on a CPU, which is read when a process starts."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from autoseg.allocator import SMALL_BLOCKS_UNCACHED, TUNABLES, is_glibc, is_set_up_by_user

COMMANDS = frozenset({"demo", "train", "pretrain", "find-best", "predict", "benchmark"})  # that compute networks
ONCE = "AUTOSEG_STARTED_AGAIN"  # the loader may change the tunables of a process with rights of its own
GPU_DRIVERS = ("proc/driver/nvidia", "dev/dxg", "dev/kfd")  # Linux, WSL, ROCm


def start_again(arguments: Sequence[str], root: Path = Path("/")) -> None:
    """Replace this process by the same command with glibc's caches of small blocks off, where it computes on a CPU.

    Nothing happens where the user set up the allocator, the C library is another one, a driver of GPUs is there and the
    CPU is not asked for, or this process is more than a command that was just typed; nor where it cannot be replaced.
    """
    if ONCE in os.environ or not COMMANDS & set(arguments[:1]) or {"--help", "-h"} & set(arguments):
        return
    if not is_glibc() or is_set_up_by_user() or not _is_just_this_command(arguments):
        return
    if any((root / driver).exists() for driver in GPU_DRIVERS) and not _asks_for_cpu(arguments):
        return
    before = os.environ.get(TUNABLES)
    os.environ |= {ONCE: "1", TUNABLES: f"{before}:{SMALL_BLOCKS_UNCACHED}" if before else SMALL_BLOCKS_UNCACHED}
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except (OSError, ValueError, TypeError):
        del os.environ[ONCE], os.environ[TUNABLES]
        if before is not None:
            os.environ[TUNABLES] = before


def _is_just_this_command(arguments: Sequence[str]) -> bool:
    """Return whether the interpreter runs a file or module with these arguments, and nothing else began."""
    typed = len(arguments) > 0 and sys.orig_argv[-len(arguments) :] == list(arguments)
    return typed and Path(sys.argv[0]).is_file() and threading.active_count() == 1


def _asks_for_cpu(arguments: Sequence[str]) -> bool:
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return "--device=cpu" in arguments or ("--device", "cpu") in pairs
