"""Run the whole chain by commands alone on the real data sets beside the repository, in short budgets.

    python benchmarks/chains.py [--only NAME ...] [--seconds 60] [--workspace DIR] [--json FILE]

Every step is one `autoseg` command, started as a user would; the table says exit code, seconds and Dice of each.
Budgets are far too short for good models: what is shown is that every kind of data goes all the way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass
class Chain:
    """One data set: what is trained and what is predicted."""

    dataset: str
    runs: list[tuple[str, str]]  # (configuration, folds)
    plan: list[str] = field(default_factory=list)
    variant: dict | None = None  # a dataset.json of its own, beside the images
    predict: str | None = "imagesTs"


SCRIBBLES = {
    "labels_folder": "scribblesTr",
    "labels": {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3, "ignore": 4},
}
REGIONS = {
    "labels": {
        "background": 0,
        "whole tumour": [1, 2, 3, 4],
        "tumour core": [1, 3, 4],
        "enhancing tumour": [4],
    },
    "regions_class_order": [2, 1, 4],
}
CHAINS = {
    "polyp": Chain("Dataset101_PolypMultiCentre", [("2d", "0,1")]),
    "brain": Chain("Dataset110_BrainTumourMR", [("3d_fullres", "cv")], variant=REGIONS, predict="imagesTr"),
    "cardiac": Chain("Dataset112_CardiacACDC", [("2d", "0"), ("3d_fullres", "0")]),
    "scribbles": Chain("Dataset112_CardiacACDC", [("2d", "0")], variant=SCRIBBLES),
    "liver": Chain(
        "Dataset109_LiverCT",
        [("3d_lowres", "all"), ("3d_cascade_fullres", "all")],
        plan=["--planner", "nnunet", "--gpu-memory", "0.6", "--plans-name", "small"],
        predict="imagesTr",
    ),
    "organs": Chain("Dataset108_TotalSegCT", [("3d_fullres", "all")], predict="imagesTr"),
    "nrrd": Chain("Dataset119_TumourNRRD", [("3d_fullres", "all")], predict="imagesTr"),
}


def run_chain(name: str, chain: Chain, workspace: Path, seconds: int) -> list[dict]:
    """Run every command of a chain; returns one row per command."""
    source = DATA / chain.dataset
    reference = str(source)
    rows: list[dict] = []
    home = workspace / name
    home.mkdir(parents=True, exist_ok=True)
    if chain.variant is not None:
        own = json.loads((source / "dataset.json").read_text()) | chain.variant | {"folder": str(source)}
        (home / f"{name}.json").write_text(json.dumps(own))
        reference = str(home / f"{name}.json")

    def command(*arguments: str) -> None:
        started = time.monotonic()
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "AUTOSEG_WORKSPACE": str(home)}
        done = subprocess.run(
            [sys.executable, "-m", "autoseg.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        said = done.stderr if done.returncode else done.stdout
        row = {"chain": name, "command": " ".join(arguments[:3]), "exit": done.returncode}
        row |= {"seconds": round(time.monotonic() - started, 1), "last line": said.strip().splitlines()[-1:]}
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
        if done.returncode:
            print(done.stderr[-3000:], flush=True)

    plans = chain.plan[chain.plan.index("--plans-name") + 1] if "--plans-name" in chain.plan else "auto"
    command("check", reference)
    planned = chain.plan or ["--time-budget", f"{5 * seconds}s"]  # the budget of five folds
    command("plan-and-preprocess", reference, *planned)
    for configuration, folds in chain.runs:
        command("train", reference, configuration, folds, "--plans", plans, "--time-budget", f"{seconds}s",
                "--set", "stop_on_collapse=false")  # fmt: skip
    command("find-best", reference)
    output = home / "predictions"
    command("predict", "-i", str(source / chain.predict), "-o", str(output), "-d", reference)
    labels = source / chain.predict.replace("images", "labels")
    if (home / f"{name}.json").is_file() and name == "brain":
        command("evaluate", str(output), str(labels), "--dataset-json", str(home / f"{name}.json"))
    else:
        command("evaluate", str(output), str(labels), "--dataset-json", str(source / "dataset.json"))
    command("report", reference)
    return rows


def main() -> None:
    """Run the chains asked for and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--workspace", type=Path, default=Path("autoseg_chains"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for name in options.only for row in run_chain(name, CHAINS[name], options.workspace, options.seconds)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    failed = [row for row in rows if row["exit"]]
    print(f"{len(rows)} commands, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
