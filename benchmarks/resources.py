"""The whole pipeline, planned by `auto`, where something is short: one core, little shared memory, little memory.

    python benchmarks/resources.py [--memory 2] [--only LIMIT ...]

Every command from `check` to `evaluate` runs as users run it, on six bundled hippocampus cases, under each limit: one
core by affinity, /dev/shm of 64 MiB in a mount namespace of its own, memory (GiB) by a cgroup, and all of them. Needs
root on Linux; a limit that this machine refuses is told as such. Prints a table of exit codes, time and peak memory.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from small_pipeline import commands, copy_data

PLANNING = ["--time-budget", "5m"]
TRAINING = ["--set", "steps=4"]
ONE_CORE = ["taskset", "-c", "0"]
SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(gib: float) -> Iterator[tuple[list[str], Path]]:
    """Yield what starts a command in a cgroup with a memory limit, and the file that tells its peak."""
    version_1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if version_1 else CGROUPS) / "autoseg-benchmark"
    limit, peak = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if version_1 else ("memory.max", "memory.peak")
    group.mkdir()
    try:
        (group / limit).write_text(str(int(gib * 2**30)))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"], group / peak
    finally:
        group.rmdir()


def run_all(prefix: list[str]) -> tuple[str, float]:
    """Run every command; returns "done", or where it ended, and the seconds of all."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "work"
        copy_data(work)
        began = time.monotonic()
        for name, arguments in commands(work, 2, planning=PLANNING, training=["--plans", "auto", *TRAINING]).items():
            line = [*prefix, sys.executable, "-m", "autoseg.cli", *arguments]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                return f"{name}: exit code {done.returncode}", time.monotonic() - began
        return "done", time.monotonic() - began


def allowed(prefix: list[str]) -> bool:
    """Return whether this machine lets a command run so."""
    able = not prefix or shutil.which(prefix[0]) is not None
    return able and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run under every limit; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=float, default=2.0, metavar="GiB")
    parser.add_argument("--only", nargs="*", metavar="LIMIT", help="by the names in the table")
    options = parser.parse_args()
    limits = {
        "none": (64.0, []),
        "one core": (64.0, ONE_CORE),
        "/dev/shm of 64 MiB": (64.0, SMALL_SHM),
        f"{options.memory:g} GiB of memory": (options.memory, []),
        "all of these": (options.memory, [*SMALL_SHM, *ONE_CORE]),
    }
    print("| limit | outcome | seconds of all commands | peak of memory, page cache included |\n|---|---|---|---|")
    failed = False
    for name, (gib, prefix) in limits.items():
        if options.only and name not in options.only:
            continue
        with memory_limit(gib) as (inside, peak):
            if not allowed([*inside, *prefix]):
                print(f"| {name} | not possible on this machine | | |", flush=True)
                continue
            outcome, seconds = run_all([*inside, *prefix])
            failed |= outcome != "done"
            print(f"| {name} | {outcome} | {seconds:.0f} | {int(peak.read_text()) / 2**30:.2f} GiB |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
