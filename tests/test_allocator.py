"""What networks on a CPU free is used again without the system, unless the user set up the allocator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import allocator
from autoseg.allocator import SMALL_BLOCKS_UNCACHED, TUNABLES

ALLOCATING = """
import resource, sys
import torch
from autoseg.allocator import give_freed_memory_back
from autoseg.devices import prepare_to_compute

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**26

if "keep" in sys.argv:
    prepare_to_compute(torch.device("cpu"))
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**26)
held = resident()
give_freed_memory_back()
print(held - resident())
"""
needs_glibc = pytest.mark.skipif(not allocator.is_glibc(), reason="another C library")


def allocate(*words, **variables):
    """Return how many of ten blocks the system had to give anew, and how many were then given back to it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ALLOCATING, *words]
    done = subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@needs_glibc
def test_freed_memory_is_used_again_without_the_system_until_it_is_given_back():
    given, back = allocate("keep", **{TUNABLES: SMALL_BLOCKS_UNCACHED})
    assert given < 0.5
    assert back > 0.9
    given, back = allocate(**{TUNABLES: SMALL_BLOCKS_UNCACHED})
    assert given > 9
    assert back < 0.1


@needs_glibc
@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_MMAP_THRESHOLD_": "100000"}, {"MALLOC_MMAP_MAX_": "1000"}, {TUNABLES: "glibc.malloc.mmap_max=1000"}],
)
def test_an_allocator_that_the_user_set_up_stays_so(variables):
    given, _ = allocate("keep", **variables)
    assert given > 9


def test_only_what_sets_up_malloc_counts_as_set_up(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    for value in ("", SMALL_BLOCKS_UNCACHED, f"glibc.rtld.nns=4:{SMALL_BLOCKS_UNCACHED}"):
        monkeypatch.setenv(TUNABLES, value)
        assert not allocator.is_set_up_by_user()
    monkeypatch.setenv(TUNABLES, f"glibc.malloc.arena_max=1:{SMALL_BLOCKS_UNCACHED}")
    assert allocator.is_set_up_by_user()


@needs_glibc
def test_the_loader_knows_the_tunables():
    """A name that it does not know is passed over in silence."""
    loaders = [*Path("/lib64").glob("ld-linux-*"), *Path("/lib").glob("ld-linux-*")]
    if not loaders:
        pytest.skip("no loader where it is looked for")
    asked = [loaders[0], "--list-tunables"]
    done = subprocess.run(asked, env={TUNABLES: SMALL_BLOCKS_UNCACHED}, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this loader does not list its tunables")
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    for name in ("glibc.malloc.tcache_count", "glibc.malloc.mxfast"):
        assert found[name].startswith("0x0 ")


def test_another_system_keeps_its_allocator(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.is_glibc()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("it was asked"))
    allocator.keep_freed_memory.__wrapped__()
