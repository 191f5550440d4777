"""Compare training methods at equal steps on hippocampus MRI: few labels, pretraining, distillation.

    python benchmarks/methods.py [--only few_labels consistency pretraining ...] [--seeds 0 1 2] [--data FOLDER]

Every run is what a user types. Plans are `auto`'s, sized for 2 cores; `COMPARISONS` names configuration and steps. Fold
0, scored on its 40 held-out cases, except for the distillation into one network: its teachers are the five folds of
`cv`, which together have seen every training case, so student and teachers are scored on the 10 test cases. Methods run
with their defaults; those that were tuned were tuned on fold 1. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "Dataset004_Hippocampus"
LABELLED = ("--labelled", "10")
SMALL, RESIDUAL = ("--plans", "small"), ("--plans", "residual")


class Bench:
    """One workspace and the rows measured in it."""

    def __init__(self, data: Path, workspace: Path, configuration: str, steps: int, output: Path | None):
        self.data = data.resolve()
        self.workspace, self.configuration, self.steps = workspace.resolve(), configuration, steps
        self.output = output
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
        """Plan and preprocess under a name, if not done yet."""
        if not list(self.workspace.glob(f"preprocessed/*/plans/{name}.json")):
            self.autoseg(
                "plan-and-preprocess", str(self.data), "-c", self.configuration, "--plans-name", name, *arguments
            )

    def train(self, comparison: str, arm: str, seed: int, *arguments: str, fold: str = "0", command: str = "train"):
        """Train one run; returns its folder and keeps its row."""
        name = f"{comparison}.{arm}.{seed}"
        folds = [fold] if command == "train" else []
        given = ["--set", f"steps={self.steps}", "--set", "stop_on_collapse=false", *arguments]
        started = time.monotonic()
        said = self.autoseg(
            command, str(self.data), self.configuration, *folds, "--seed", str(seed), "--name", name, "--json", *given
        )
        record = json.loads(said)
        record = record[0] if isinstance(record, list) else record
        row = {"comparison": comparison, "arm": arm, "seed": seed, "steps": record["steps_done"]}
        row["seconds"] = round(time.monotonic() - started, 1)
        if record.get("validation") and fold != "all":  # those cases were trained on
            row["dice"] = round(record["validation"]["foreground_dice"], 4)
        self.keep(row)
        return next(self.workspace.glob(f"results/*/{name}__*/fold_*"))

    def keep(self, row: dict) -> None:
        """Print a row and write all of them."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.output:
            self.output.write_text(json.dumps(self.rows, indent=1))

    def score(self, comparison: str, arm: str, seed: int) -> Path:
        """Choose the runs of one name, score their model on the test cases; returns a copy of it."""
        output, model = (self.workspace / f"{kind}_{comparison}_{arm}_{seed}" for kind in ("predictions", "model"))
        chosen = self.autoseg(
            "find-best", str(self.data), "--trainer", f"{comparison}.{arm}.{seed}", "--restart", "--json"
        )
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(json.loads(chosen)["model"], model)
        self.autoseg("predict", "-m", str(model), "-i", str(self.data / "imagesTs"), "-o", str(output), "--restart")
        self.autoseg(
            "evaluate", str(output), str(self.data / "labelsTs"), "--dataset-json", str(self.data / "dataset.json")
        )
        found = json.loads((output / "summary.json").read_text())["foreground_mean"]["dice"]
        self.keep({"comparison": comparison, "arm": arm, "seed": seed, "test dice": round(found, 4)})
        return model


def seconds_per_case(data: Path, models: Mapping[str, Path]) -> dict[str, float]:
    """Return the median CPU seconds that each model takes for a test case, all models in turn on every case."""
    import SimpleITK

    import autoseg

    predictors = {name: autoseg.Predictor.load(model) for name, model in models.items()}
    spent: dict[str, list[float]] = {name: [] for name in models}
    for file in sorted((data / "imagesTs").glob("*.nii.gz")):
        image = SimpleITK.ReadImage(str(file), SimpleITK.sitkFloat32)
        array, spacing = SimpleITK.GetArrayFromImage(image)[None], image.GetSpacing()[::-1]
        for name, predictor in predictors.items():
            started = time.process_time()
            predictor.predict_array(array, spacing)
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def few_labels(bench: Bench, seeds: list[int]) -> None:
    """Supervised with 10 labelled cases against pasting them and the other 150, unlabelled, into each other."""
    bench.plan("auto", "--time-budget", "20m")
    for seed in seeds:
        for trainer in ("supervised", "bidirectional_copy_paste"):
            bench.train("few_labels", trainer, seed, *LABELLED, "--trainer", trainer)


def consistency(bench: Bench, seeds: list[int]) -> None:
    """Supervised with 10 labelled cases against a mean teacher that also sees the other 150 without labels."""
    bench.plan("small", "--time-budget", "6m")
    for seed in seeds:
        for trainer in ("supervised", "mean_teacher"):
            bench.train("consistency", trainer, seed, *LABELLED, *SMALL, "--trainer", trainer)


def pretraining(bench: Bench, seeds: list[int]) -> None:
    """From scratch with 10 labelled cases against starting from a masked autoencoder of all images."""
    bench.plan("residual", "--time-budget", "20m", "--architecture", "residual_encoder_unet")
    for seed in seeds:
        pretrained = bench.train("pretraining", "masked_autoencoder", seed, *RESIDUAL, command="pretrain")
        start = ("--pretrained", str(pretrained))
        bench.train("pretraining", "scratch", seed, *LABELLED, *RESIDUAL)
        bench.train("pretraining", "pretrained", seed, *LABELLED, *RESIDUAL, *start)
        bench.train("pretraining", "fine_tuning", seed, *LABELLED, *RESIDUAL, *start, "--trainer", "fine_tuning")


def self_distillation(bench: Bench, seeds: list[int]) -> None:
    """Self-distillation against plain training."""
    bench.plan("small", "--time-budget", "6m")
    for seed in seeds:
        for trainer in ("supervised", "dual_self_distillation"):
            bench.train("self_distillation", trainer, seed, *SMALL, "--trainer", trainer)


def distillation(bench: Bench, seeds: list[int]) -> None:
    """One student of the ensemble of five folds that teaches it, as wide as they are and half as wide."""
    bench.plan("small", "--time-budget", "6m")
    for fold in range(5):
        teachers = bench.train("distillation", "teacher", 0, *SMALL, fold=str(fold)).parent
    models = {"teacher": bench.score("distillation", "teacher", 0)}
    for seed in seeds:
        taught = ("--trainer", "distillation", "--set", f"teacher={teachers}")
        for arm, given in {"student": taught, "half_student": (*taught, "--set", "width=0.5"), "alone": ()}.items():
            bench.train("distillation", arm, seed, *SMALL, *given, fold="all")
            models[arm] = bench.score("distillation", arm, seed)
    bench.keep({"comparison": "distillation", "CPU seconds per case": seconds_per_case(bench.data, models)})


COMPARISONS = {
    "few_labels": (few_labels, "3d_fullres", 2000),
    "consistency": (consistency, "2d", 3000),
    "pretraining": (pretraining, "3d_fullres", 500),
    "self_distillation": (self_distillation, "2d", 3000),
    "distillation": (distillation, "2d", 3000),
}


def main() -> None:
    """Run the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run, in place of those that the figures were measured with")
    parser.add_argument("--data", type=Path, default=DATA, help="a raw folder of hippocampus MRI")
    parser.add_argument("--workspace", type=Path, default=Path("autoseg_methods"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name in options.only:
        compare, configuration, steps = COMPARISONS[name]
        output = options.json and options.json.with_stem(f"{options.json.stem}_{name}")
        compare(Bench(options.data, options.workspace, configuration, options.steps or steps, output), options.seeds)


if __name__ == "__main__":
    main()
