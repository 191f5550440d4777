"""Compare training methods at equal steps on hippocampus MRI: few labels, pretraining, distillation.

    python benchmarks/methods.py [--only few_labels pretraining distillation] [--steps 800] [--seeds 0 1 2]

Every run is what a user types. One plan (`auto`, sized for 2 cores), fold 0, scored on its 40 held-out cases, except
for the distillation into one network: its teachers are the five folds of `cv`, which together have seen every training
case, so student and teachers are scored on the 10 test cases.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "Dataset004_Hippocampus"
LABELLED = ("--labelled", "10")
RESIDUAL = ("--plans", "residual")


class Bench:
    """One workspace and the rows measured in it."""

    def __init__(self, workspace: Path, steps: int, output: Path | None):
        self.workspace, self.steps, self.output = workspace.resolve(), steps, output
        self.rows: list[dict] = []

    def autoseg(self, *arguments: str) -> str:
        """Run one command; returns what it printed."""
        environment = {**os.environ, "AUTOSEG_WORKSPACE": str(self.workspace), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "autoseg.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-3000:]}")
        return done.stdout

    def plan(self, name: str, *arguments: str) -> None:
        """Plan and preprocess 3d_fullres under a name, if not done yet."""
        if not list(self.workspace.glob(f"preprocessed/*/plans/{name}.json")):
            self.autoseg("plan-and-preprocess", str(DATA), "-c", "3d_fullres", "--plans-name", name, *arguments)

    def train(self, comparison: str, arm: str, seed: int, *arguments: str, fold: str = "0", command: str = "train"):
        """Train one run of `steps` steps; returns its folder and keeps its row."""
        name = f"{comparison}.{arm}.{seed}"
        folds = [fold] if command == "train" else []
        given = ["--set", f"steps={self.steps}", "--set", "stop_on_collapse=false", *arguments]
        started = time.monotonic()
        said = self.autoseg(
            command, str(DATA), "3d_fullres", *folds, "--seed", str(seed), "--name", name, "--json", *given
        )
        record = json.loads(said)
        record = record[0] if isinstance(record, list) else record
        row = {"comparison": comparison, "arm": arm, "seed": seed, "steps": record["steps_done"]}
        row["seconds"] = round(time.monotonic() - started, 1)
        if record.get("validation"):
            row["dice"] = round(record["validation"]["foreground_dice"], 4)
        self.keep(row)
        return next(self.workspace.glob(f"results/*/{name}__*/fold_*"))

    def keep(self, row: dict) -> None:
        """Print a row and write all of them."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.output:
            self.output.write_text(json.dumps(self.rows, indent=1))

    def score(self, comparison: str, arm: str, seed: int, trainer: str) -> None:
        """Choose the runs of one name and score their model, without mirroring, on the test cases."""
        output = self.workspace / f"predictions_{comparison}_{arm}_{seed}"
        self.autoseg("find-best", str(DATA), "--trainer", trainer, "--restart")
        started = time.monotonic()
        self.autoseg("predict", "-i", str(DATA / "imagesTs"), "-o", str(output), "-d", str(DATA), "--restart")
        seconds = time.monotonic() - started
        self.autoseg("evaluate", str(output), str(DATA / "labelsTs"), "--dataset-json", str(DATA / "dataset.json"))
        found = json.loads((output / "summary.json").read_text())["foreground_mean"]["dice"]
        self.keep({"comparison": comparison, "arm": arm, "seed": seed, "test dice": round(found, 4),
                   "prediction seconds": round(seconds, 1)})  # fmt: skip


def few_labels(bench: Bench, seeds: list[int]) -> None:
    """Supervised with 10 labelled cases against the methods that also see the other 150 without labels."""
    bench.plan("auto", "--time-budget", "20m")
    for seed in seeds:
        for trainer in ("supervised", "mean_teacher", "bidirectional_copy_paste"):
            bench.train("few_labels", trainer, seed, *LABELLED, "--trainer", trainer)


def pretraining(bench: Bench, seeds: list[int]) -> None:
    """From scratch with 10 labelled cases against starting from a masked autoencoder of all images."""
    bench.plan("residual", "--time-budget", "20m", "--architecture", "residual_encoder_unet")
    for seed in seeds:
        pretrained = bench.train("pretraining", "masked_autoencoder", seed, *RESIDUAL, command="pretrain")
        start = ("--pretrained", str(pretrained))
        bench.train("pretraining", "scratch", seed, *LABELLED, *RESIDUAL)
        bench.train("pretraining", "pretrained", seed, *LABELLED, *RESIDUAL, *start)
        bench.train("pretraining", "fine_tuning", seed, *LABELLED, *RESIDUAL, *start, "--trainer", "fine_tuning")


def distillation(bench: Bench, seeds: list[int]) -> None:
    """Self-distillation against plain training; one student against the ensemble of five folds that teaches it."""
    bench.plan("auto", "--time-budget", "20m")
    for seed in seeds:
        for trainer in ("supervised", "dual_self_distillation"):
            bench.train("self_distillation", trainer, seed, "--trainer", trainer)
    for fold in range(5):
        teachers = bench.train("distillation", "teacher", 0, fold=str(fold)).parent
    bench.score("distillation", "teacher", 0, "distillation.teacher.0")
    for seed in seeds:
        for arm, given in (("student", ("--trainer", "distillation", "--set", f"teacher={teachers}")), ("alone", ())):
            bench.train("distillation", arm, seed, *given, fold="all")
            bench.score("distillation", arm, seed, f"distillation.{arm}.{seed}")


COMPARISONS = {"few_labels": few_labels, "pretraining": pretraining, "distillation": distillation}


def main() -> None:
    """Run the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=Path("autoseg_methods"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options.workspace, options.steps, options.json)
    for name in options.only:
        COMPARISONS[name](bench, options.seeds)


if __name__ == "__main__":
    main()
