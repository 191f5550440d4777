"""Starts a command again with glibc's allocator set up for networks on a CPU, which is read when a process starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = frozenset({"demo", "train", "pretrain", "find-best", "predict", "benchmark"})  # that compute networks
NAME = "GLIBC_TUNABLES"
# Without caches of small blocks: those cut from the edges of large ones would keep these from being joined again once
# they are freed, so that the next large block finds no room among them and a training step takes a third more memory.
TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def start_again(arguments: Sequence[str], root: Path = Path("/")) -> None:
    """Replace this process by the same command with `TUNABLES`, where it may compute networks on a CPU.

    Nothing happens where the user set up the allocator, the C library is another one, or an NVIDIA driver is there and
    the CPU is not asked for.
    """
    set_up = NAME in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if set_up or not COMMANDS & set(arguments[:1]) or {"--help", "-h"} & set(arguments) or not _is_glibc():
        return
    if (root / "proc/driver/nvidia").is_dir() and not _asks_for_cpu(arguments):
        return
    os.environ[NAME] = TUNABLES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):
        return False


def _asks_for_cpu(arguments: Sequence[str]) -> bool:
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return "--device=cpu" in arguments or ("--device", "cpu") in pairs
