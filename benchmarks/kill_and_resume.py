"""Kill a training at random moments, resume it, and compare its weights with those of an uninterrupted one.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

The bundled hippocampus cases, a network of some thousand weights, `--deterministic`, a checkpoint after every step.
A kill comes after a random time of a running process, so it strikes imports, set-up, steps and checkpoint writing.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoseg.demo import bundled_dataset, copy_dataset
from autoseg.fingerprinting import fingerprint
from autoseg.planning import plan
from autoseg.plans import TrainingPlan
from autoseg.preprocessing import preprocess
from autoseg.raw import open_dataset
from autoseg.storage import file_hash, read_json
from autoseg.workspace import Workspace

NAME = bundled_dataset().name
STEPS = 300


def prepare(folder: Path) -> Workspace:
    """Return a workspace with the bundled data preprocessed for a very small network."""
    workspace = Workspace.open(folder)
    dataset = open_dataset(copy_dataset(workspace), workspace)
    measured = fingerprint(dataset, workspace)
    plans = plan(dataset, measured, workspace, planner="nnunet", configurations=["3d_fullres"], plans_name="small")
    full = plans.configurations["3d_fullres"]
    network = full.network.model_copy(update={"features": (4, 8, 8, 8), "patch_size": (24, 32, 24)})
    small = full.model_copy(
        update={"network": network, "patch_size": (24, 32, 24), "batch_size": 2,
                "training": TrainingPlan(steps=STEPS, optimizer="adamw", learning_rate=3e-3, augmentation="light")}
    )  # fmt: skip
    plans = plans.model_copy(update={"configurations": {"3d_fullres": small}})
    plans.write(workspace.plans_file(NAME, "small"))
    preprocess(dataset, plans, workspace)
    return workspace


def start(workspace: Workspace) -> subprocess.Popen[bytes]:
    """Start or resume the training as a user would."""
    return subprocess.Popen(
        [sys.executable, "-m", "autoseg.cli", "train", NAME, "3d_fullres", "0", "--plans", "small", "--deterministic",
         "--workspace", str(workspace.root), "--set", "checkpoint_minutes=0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        workspace = prepare(Path(place))
        run = workspace.run_folder(NAME, "supervised", "small", "3d_fullres", 0)
        began = time.monotonic()
        assert start(workspace).wait() == 0
        whole = time.monotonic() - began
        expected = file_hash(run / "weights.safetensors")
        run.rename(run.with_name("uninterrupted"))
        killed = 0
        while killed < options.kills:
            child = start(workspace)
            try:
                # Later starts have less to do: from a moment before the first step to one near the end.
                child.wait(draw.uniform(0.2 * whole, 0.6 * whole))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                killed += 1
                done = read_json(run / "run.json")["steps_done"] if (run / "run.json").is_file() else 0
                print(f"kill {killed}: resumed from step {done}", flush=True)
                continue
            print("finished before the next kill; starting over", flush=True)
            assert file_hash(run / "weights.safetensors") == expected, "weights differ"
            for path in sorted(run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        assert start(workspace).wait() == 0
        same = file_hash(run / "weights.safetensors") == expected
        print(f"{killed} kills; weights equal to those of the uninterrupted training: {same}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
