"""A made-up data set of small cases, planned for tiny networks and preprocessed, on which any trainer can be tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoseg.fingerprinting import fingerprint
from autoseg.planning import Planner, Resources
from autoseg.preprocessing import preprocess
from autoseg.randomness import generator
from autoseg.raw import Geometry, open_dataset, write_label
from autoseg.storage import write_json
from autoseg.workspace import Workspace

DATASET = "Dataset001_Tiny"
PLANS = "tiny"
CONFIGURATIONS = ("2d", "3d_fullres")
SIZE = (12, 20, 16)  # z, y, x
LABELLED, UNLABELLED = 5, 2


class TinyPlanner(Planner):
    """nnU-Net's rules with a network of a few channels."""

    base_features: int = 4
    max_features_2d: int = 8
    max_features_3d: int = 8
    reference_batch_2d: int = 2


def make_workspace(root: Path) -> str:
    """Make raw data, plans and stores under `root`; returns the name of the data set."""
    workspace = Workspace.open(root)
    _write_raw(workspace.raw / DATASET)
    dataset = open_dataset(workspace.raw / DATASET, workspace)
    plans = TinyPlanner(name="tiny", plans_name=PLANS, wanted=CONFIGURATIONS).plan(
        fingerprint(dataset, workspace, workers=1), Resources("cpu", 1.0), dataset
    )
    plans.write(workspace.plans_file(DATASET, PLANS))
    preprocess(dataset, plans, workspace, workers=1)
    return DATASET


def _write_raw(folder: Path) -> None:
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "ball": 1, "slab": 2},
        "numTraining": LABELLED,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)
    for index in range(LABELLED + UNLABELLED):
        image, label = _case(index)
        images = folder / ("imagesTr" if index < LABELLED else "imagesUn")
        _write(images / f"case_{index}_0000.nii.gz", image)
        if index < LABELLED:
            _write(folder / "labelsTr" / f"case_{index}.nii.gz", label)


def _case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy image of a bright ball above a grey slab, and the labels of both."""
    random = generator(0, "tiny_workspace", sample=index)
    z, y, x = np.indices(SIZE)
    centre = np.array(SIZE) / 2 + random.uniform(-1, 1, 3)
    ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 4**2
    slab = (y > SIZE[1] - 4) & ~ball
    label = (ball + 2 * slab).astype(np.uint8)
    image = 100 + 60 * ball + 30 * slab + random.normal(0, 8, SIZE)
    return image.astype(np.int16), label


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    geometry = Geometry(
        spacing=(1.0, 1.0, 1.0),
        size=SIZE,
        origin=(0.0, 0.0, 0.0),
        direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        dims=3,
        source=path,
    )
    write_label(path, array, geometry)
