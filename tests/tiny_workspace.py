"""A preprocessed workspace of six real hippocampus cases with a network of some thousand weights."""

import json
import shutil

import pytest

from autoseg.fingerprinting import fingerprint
from autoseg.planning import plan
from autoseg.plans import NetworkSpec, TrainingPlan
from autoseg.preprocessing import preprocess
from autoseg.raw import open_dataset
from autoseg.workspace import Workspace

CASES = 6


def small_spec(spec: NetworkSpec, patch: tuple[int, ...]) -> NetworkSpec:
    stages = 3
    return spec.model_copy(
        update={
            "patch_size": patch,
            "strides": ((1,) * spec.dims,) + ((2,) * spec.dims,) * (stages - 1),
            "kernel_sizes": ((3,) * spec.dims,) * stages,
            "features": (4, 8, 8),
            "blocks_encoder": (2,) * stages,
            "blocks_decoder": (2,) * (stages - 1),
        }
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, repository) -> Workspace:
    source = repository / "autoseg" / "demo" / "data" / "Dataset004_Hippocampus"
    workspace = Workspace.open(tmp_path_factory.mktemp("tiny"))
    folder = workspace.raw / "Dataset004_Hippocampus"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for label in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        shutil.copy(label, folder / "labelsTr")
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(source / "imagesTr" / image, folder / "imagesTr")
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = CASES
    (folder / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(folder, workspace)
    found = fingerprint(dataset, workspace, workers=1)
    plans = plan(dataset, found, workspace, planner="nnunet", plans_name="tiny", device="cpu")
    small = {}
    for name, configuration in plans.configurations.items():
        patch = (24, 32, 24) if configuration.dims == 3 else (32, 24)
        small[name] = configuration.model_copy(
            update={
                "patch_size": patch,
                "batch_size": 2,
                "network": small_spec(configuration.network, patch),
                "training": TrainingPlan(steps=12, optimizer="adamw", learning_rate=3e-3, augmentation="light"),
            }
        )
    low = small["3d_fullres"].model_copy(
        update={
            "name": "3d_lowres",
            "spacing": (2.0, 2.0, 2.0),
            "data_identifier": "tiny_3d_lowres",
            "next_stage": "3d_cascade_fullres",
        }
    )
    full = small["3d_fullres"]
    network = full.network.model_copy(update={"in_channels": 3})
    cascade = full.model_copy(update={"name": "3d_cascade_fullres", "previous_stage": "3d_lowres", "network": network})
    small |= {"3d_lowres": low, "3d_cascade_fullres": cascade}
    plans = plans.model_copy(update={"configurations": small})
    plans.write(workspace.plans_file(dataset.name, "tiny"))
    preprocess(dataset, plans, workspace, workers=1)
    return workspace


@pytest.fixture
def scratch(tiny, tmp_path) -> Workspace:
    """The same data with results of its own."""
    return Workspace(raw=tiny.raw, preprocessed=tiny.preprocessed, results=tmp_path / "results", root=tmp_path)
