"""nnunetv2's own trainer and predictor, where they can be imported, on the data that autoseg has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpu_parts.bench import NAME, Bench
from gpu_parts.networks import nnunet_network, nnunet_plans
from gpu_parts.sizes import CORES
from gpu_parts.volumes import LABELS, volumes

PLACES = 10_000  # of each class, that patches are centred on


class Absent(Exception):
    """There is no nnunetv2 here; says why."""


def make_trainer(bench: Bench, network: str) -> Any:
    """Return nnunetv2's trainer, initialised, with its data beside. Raises Absent."""
    folder = bench.work / f"nnunet_{network}"
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str(folder / part)
    os.environ |= {"nnUNet_n_proc_DA": str(CORES), "nnUNet_def_n_proc": str(CORES)}
    with _present():
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    description = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii"}
    data = folder / "preprocessed" / NAME / "nnUNetPlans_3d_fullres"
    if not (data.parent / "dataset.json").exists():  # the process that compiled may have made them
        data.mkdir(parents=True, exist_ok=True)
        for case, (image, label) in enumerate(volumes(bench.sizes)):
            blocks, chunks = comp_blosc2_params((1, *image.shape), bench.sizes.patch)
            nnUNetDatasetBlosc2.save_case(
                image[None], label[None].astype(np.int8), {"class_locations": _locations(label)},
                str(data / f"case{case}"), chunks=chunks, blocks=blocks,
            )  # fmt: skip
        (data.parent / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    trainer = nnUNetTrainer(
        nnunet_plans(bench.sizes, network, NAME), "3d_fullres", "all", description, device=bench.device
    )
    trainer.initialize()
    trainer.network.train()
    return trainer


@contextmanager
def loader(trainer: Any) -> Iterator[Any]:
    """Make nnunetv2's batches in processes of its own, as many as there are cores, and as many for validation."""
    training, validation = trainer.get_dataloaders()
    try:
        yield training
    finally:
        for each in (training, validation):  # as `on_train_end` does
            each._finish()


def make_predictor(bench: Bench) -> Any:
    """Return nnunetv2's predictor of the plain network, all on the device. Raises Absent."""
    with _present():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    network = nnunet_network(bench.sizes, "plain", outputs=bench.sizes.classes)
    network.decoder.deep_supervision = False
    predictor = nnUNetPredictor(device=bench.device, allow_tqdm=False, perform_everything_on_device=True)
    predictor.network = network.to(bench.device).eval()
    predictor.configuration_manager = SimpleNamespace(patch_size=bench.sizes.patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=bench.sizes.classes)
    predictor.allowed_mirroring_axes = (0, 1, 2)
    return predictor


def resample(logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return logits (K, Z, Y, X) of the 1.5 mm grid on that of the image. Raises Absent."""
    with _present():
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    return resample_data_or_seg_to_shape(logits, shape, (1.5,) * 3, (1.0, 0.8, 0.8), order=1, force_separate_z=None)


def version() -> str:
    """Return the version that is installed."""
    from importlib.metadata import version

    return f"nnunetv2 {version('nnunetv2')}"


def _locations(label: np.ndarray) -> dict[int, np.ndarray]:
    """Return some voxels of each class, (n, 4), the first column of which is the channel."""
    random = np.random.default_rng(0)
    found = {}
    for value in LABELS.values():
        if value:
            places = np.argwhere(label[None] == value)
            found[value] = places[random.permutation(len(places))[:PLACES]]
    return found


@contextmanager
def _present() -> Iterator[None]:
    """Turn whatever an import stumbles over into Absent."""
    try:
        yield
    except Exception as error:  # a package that it needs may be broken, too
        raise Absent(f"nnunetv2 cannot be imported: {type(error).__name__}: {error}"[:300]) from error
