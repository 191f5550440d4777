"""Plans of every architecture for 8, 11, 24, 40 and 80 GiB on three real fingerprints and one made up, as a table.

    python benchmarks/plans_table.py [--only NAME ...] [--memory 8 24] [--data FOLDER]

Planner `traced`: the largest patch and batch whose traced training step fits. The data sets lie beside the
repository or in FOLDER. The real ones are small; "large CT", equal cases of 200 x 512 x 512 voxels at 2 x 0.8 x 0.8 mm,
is what abdominal CT usually is.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from autoseg import plugins
from autoseg.conformance import planner as stock
from autoseg.fingerprinting import fingerprint
from autoseg.planning import Resources
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
    parser.add_argument("--only", nargs="*", default=[found.name for found in plugins.list_plugins("architecture")])
    parser.add_argument("--memory", nargs="*", type=float, default=[8, 11, 24, 40, 80])
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    kind = plugins.load("planner", "traced")
    logging.disable(logging.WARNING)
    print("| architecture | data | " + " | ".join(f"{gib:g} GiB" for gib in options.memory) + " |")
    print("| --- " * (2 + len(options.memory)) + "|")
    with tempfile.TemporaryDirectory() as place:
        workspace = Workspace.open(place)
        opened = {name: open_dataset(options.data / folder, workspace) for name, folder in DATASETS.items()}
        data = {name: (fingerprint(dataset, workspace), dataset) for name, dataset in opened.items()}
        data["large CT"] = stock.stock_fingerprint(*stock.DATA["large CT"])
        for architecture in options.only:
            for name, (measured, dataset) in data.items():
                cells = []
                for gib in options.memory:
                    planner = kind(name="table", architecture=architecture, wanted=["3d_fullres"])
                    plans = planner.plan(measured, Resources("cuda", gib, memory_given=True), dataset)
                    chosen = plans.configuration("3d_fullres")
                    cells.append("x".join(map(str, chosen.patch_size)) + f", {chosen.batch_size}")
                print(f"| {architecture} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
