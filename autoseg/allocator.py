"""The C library's allocator (glibc) as networks on a CPU need it: what was freed is used again without the system."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

TUNABLES = "GLIBC_TUNABLES"  # read when a process starts
# Without caches of small blocks: those cut from the edges of large ones would keep these from being joined again once
# they are freed, so that the next large block finds no room among them and a training step takes a third more memory.
SMALL_BLOCKS_UNCACHED = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def is_set_up_by_user() -> bool:
    """Return whether the environment says how large blocks are kept, or sets up malloc by tunables other than ours."""
    named = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"} & os.environ.keys()
    return bool(named) or "glibc.malloc." in os.environ.get(TUNABLES, "").replace(SMALL_BLOCKS_UNCACHED, "")


def is_glibc() -> bool:
    """Return whether the C library is glibc."""
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):
        return False


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep what is freed for the next that needs it, unless the user set up the allocator.

    glibc gives large blocks back to the system at once, which then fills every page of the next one with zeros: on a
    CPU that is a tenth to half of a training step.
    """
    if is_glibc() and not is_set_up_by_user():
        options = ctypes.CDLL(None).mallopt
        options(_M_MMAP_MAX, 0)
        options(_M_TRIM_THRESHOLD, -1)


def give_freed_memory_back() -> None:
    """Give back to the system what `keep_freed_memory` has kept so far, if it was called."""
    if keep_freed_memory.cache_info().currsize and is_glibc():
        ctypes.CDLL(None).malloc_trim(0)
