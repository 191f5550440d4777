"""A workspace of autoseg with a few preprocessed volumes, and a plan per network, patch and batch as asked for."""

from __future__ import annotations

import json
from pathlib import Path

from gpu_parts.bench import Bench
from gpu_parts.networks import NETWORKS, network_spec
from gpu_parts.sizes import BATCH
from gpu_parts.volumes import LABELS, volumes


def measure(bench: Bench) -> None:
    """Write the data set, its plans and its store."""
    import autoseg

    write_raw(bench, bench.raw)
    workspace = autoseg.Workspace.open(bench.workspace)
    dataset = autoseg.open_dataset(bench.raw, workspace)
    found = autoseg.fingerprint(dataset, workspace)
    plans = autoseg.plan(dataset, found, workspace, planner="nnunet", gpu_memory=8.0, configurations=["3d_fullres"])
    for name, (architecture, *_) in NETWORKS.items():
        spec = network_spec(bench.sizes, name, outputs=len(LABELS))
        changes = {"architecture": architecture, "network": spec, "patch_size": bench.sizes.patch, "batch_size": BATCH}
        full = plans.configuration("3d_fullres").model_copy(update=changes)
        mine = plans.model_copy(update={"plans_name": name, "configurations": {"3d_fullres": full}})
        mine.write(workspace.plans_file(dataset.name, name))
        autoseg.preprocess(dataset, mine, workspace)


def write_raw(bench: Bench, raw: Path) -> None:
    """Write images, label maps and their description."""
    import nibabel as nib
    import numpy as np

    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for case, (image, label) in enumerate(volumes(bench.sizes)):
        nib.save(nib.Nifti1Image(1000 * image.T, np.eye(4)), raw / f"imagesTr/case{case}_0000.nii")
        nib.save(nib.Nifti1Image(label.T, np.eye(4)), raw / f"labelsTr/case{case}.nii")
    description = {
        "channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": bench.sizes.cases, "file_ending": ".nii",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
