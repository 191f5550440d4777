"""Plans of every architecture for 8, 11, 24, 40 and 80 GiB on three real fingerprints, as a table.

    python benchmarks/plans_table.py [--only NAME ...] [--memory 8 24]

Planner `traced`: the largest patch and batch whose traced training step fits. The data sets lie beside the repository.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from autoseg.fingerprinting import fingerprint
from autoseg.planning import plan
from autoseg.plugins import list_plugins
from autoseg.raw import open_dataset
from autoseg.workspace import Workspace

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DATASETS = {
    "hippocampus": "Dataset004_Hippocampus",
    "cardiac": "Dataset112_CardiacACDC",
    "liver CT": "Dataset109_LiverCT",
}


def main() -> None:
    """Plan and print one Markdown row per architecture, data set and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[found.name for found in list_plugins("architecture")])
    parser.add_argument("--memory", nargs="*", type=float, default=[8, 11, 24, 40, 80])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| architecture | data | " + " | ".join(f"{gib:g} GiB" for gib in options.memory) + " |")
    print("| --- " * (2 + len(options.memory)) + "|")
    with tempfile.TemporaryDirectory() as place:
        workspace = Workspace.open(place)
        data = {name: open_dataset(DATA / folder, workspace) for name, folder in DATASETS.items()}
        measured = {name: fingerprint(dataset, workspace) for name, dataset in data.items()}
        for architecture in options.only:
            for name, dataset in data.items():
                cells = []
                for gib in options.memory:
                    plans = plan(
                        dataset, measured[name], workspace, planner="traced", architecture=architecture, gpu_memory=gib,
                        configurations=["3d_fullres"], plans_name="table",
                    )  # fmt: skip
                    chosen = plans.configuration("3d_fullres")
                    cells.append("x".join(map(str, chosen.patch_size)) + f", {chosen.batch_size}")
                print(f"| {architecture} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
