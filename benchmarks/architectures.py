"""Train every architecture for the same time on real data and compare Dice, steps and parameters.

    python benchmarks/architectures.py [--only NAME ...] [--data hippocampus nuclei] [--seconds 60] [--seeds 0 1 2]

Each run is what a user types: `plan-and-preprocess --architecture NAME --time-budget`, then `train ... 0`. The planner
sizes each network so that it makes enough steps in the time; fold 0, score of its held-out cases.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DATASETS = {
    "hippocampus": ("Dataset004_Hippocampus", "3d_fullres"),
    "nuclei": ("Dataset105_NucleiDSB2018", "2d"),
    "polyps": ("Dataset101_PolypMultiCentre", "2d"),
}


def run_one(architecture: str, data: str, seconds: int, seed: int, workspace: Path) -> dict:
    """Plan and train one network; returns what its run says."""
    folder, configuration = DATASETS[data]
    reference = str(DATA / folder)
    environment = {**os.environ, "AUTOSEG_WORKSPACE": str(workspace), "PYTHONWARNINGS": "ignore"}
    row = {"architecture": architecture, "data": data, "seed": seed, "budget": seconds}

    def command(*arguments: str) -> str | None:
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "autoseg.cli", *arguments], capture_output=True, text=True,
                              check=False, env=environment)  # fmt: skip
        row[f"{arguments[0]} seconds"] = round(time.monotonic() - started, 1)
        if done.returncode:
            row["failed"] = done.stderr.strip()[-500:]
            return None
        return done.stdout

    if not (workspace / "preprocessed" / folder / "plans" / f"{architecture}.json").is_file() and not command(
        "plan-and-preprocess", reference, "--architecture", architecture, "--time-budget", f"{5 * seconds}s",
        "-c", configuration, "--plans-name", architecture,
    ):  # fmt: skip
        return row
    said = command(
        "train", reference, configuration, "0", "--plans", architecture, "--time-budget", f"{seconds}s", "--seed",
        str(seed), "--name", f"seed{seed}", "--set", "stop_on_collapse=false", "--json",
    )  # fmt: skip
    if said is None:
        return row
    (record,) = json.loads(said)
    row |= {name: record[name] for name in ("steps_done", "parameters", "seconds")}
    return row | {"dice": record["validation"]["foreground_dice"]}


def main() -> None:
    """Run what was asked for and print one JSON line per run."""
    from autoseg.plugins import list_plugins

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[found.name for found in list_plugins("architecture")])
    parser.add_argument("--data", nargs="*", choices=list(DATASETS), default=["hippocampus", "nuclei"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("autoseg_architectures"))
    options = parser.parse_args()
    for seed in options.seeds:
        for data in options.data:
            for architecture in options.only:
                row = run_one(architecture, data, options.seconds, seed, options.workspace)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
