"""autoseg segments a CT of 512x512x400 voxels with 104 classes at 1.5 mm, with mirroring."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.bench import Bench
from gpu_parts.networks import network_spec

WARM_UP = (slice(None), slice(0, 128), slice(0, 160), slice(0, 160))  # part of the image in which kernels are chosen
SPACING, PLANNED = (1.0, 0.8, 0.8), (1.5,) * 3  # mm
MIRRORED = (0, 1, 2)


def measure(bench: Bench) -> None:
    """Time the windows alone, the way back to the grid of the image alone, and both as prediction does them."""
    from autoseg.devices import prepare_to_compute
    from autoseg.plugins import build_network

    prepare_to_compute(bench.device)  # as `autoseg predict` does
    spec = network_spec(bench.sizes, "plain", outputs=bench.sizes.classes)
    spec = spec.model_copy(update={"deep_supervision": False})
    network = build_network("plain_unet", spec).to(bench.device).eval()
    image, case = made_image(bench), _case(bench, spec)
    _windows(bench, network, image[WARM_UP])
    bench.bind()
    _apart(bench, network, image, case)
    _together(bench, network, image, case)


def _windows(bench: Bench, network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return the logits (K, Z, Y, X) of an image (1, Z, Y, X)."""
    from autoseg.inference import sliding_window

    mean = sliding_window(
        [network], image, bench.sizes.patch, num_outputs=bench.sizes.classes, mirror_axes=MIRRORED, device=bench.device
    )
    return mean.logits


def _apart(bench: Bench, network: torch.nn.Module, image: torch.Tensor, case: tuple[Any, ...]) -> None:
    """Time first the windows, whose logits are kept as a whole, then the way back to the grid of the image."""
    from autoseg.inference import Resampled, label_map

    properties, plans, configuration, labels = case
    patches = _Patches(network)
    windows, logits = bench.timed(partial(_windows, bench, network, image))
    count = patches.count
    bench.tell(window_seconds=windows, patches=count, window_flops=count * _flops(network, bench))
    resampled = Resampled(logits, properties, plans, configuration)
    export, found = bench.timed(partial(label_map, [resampled], labels))
    bench.tell(
        export_seconds=export, seconds=windows + export, shape=found.shape, logits_on=str(logits.device),
        logits_bytes=logits.nbytes, peak_bytes=bench.peak_bytes,
    )  # fmt: skip


def _together(bench: Bench, network: torch.nn.Module, image: torch.Tensor, case: tuple[Any, ...]) -> None:
    """Time both as `autoseg predict` makes them, where rows are decided as soon as they are finished."""
    from autoseg.inference import Request, predict_label_map

    properties, plans, configuration, labels = case
    request = Request([network], image, configuration, mirror_axes=MIRRORED, device=bench.device)
    seconds, found = bench.timed(partial(predict_label_map, request, plans, properties, labels))
    bench.tell(seconds=seconds, shape=found.shape, decided_row_by_row=True)


def made_image(bench: Bench) -> torch.Tensor:
    """Return noise (1, Z, Y, X) in the main memory."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, *bench.sizes.coarse), dtype=np.float32))


class _Patches:
    """Counts the patches that go through a network."""

    def __init__(self, network: torch.nn.Module):
        self.count = 0
        network.register_forward_pre_hook(self._add)

    def _add(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self.count += len(inputs[0])


def _flops(network: torch.nn.Module, bench: Bench) -> int:
    """Return the operations of one patch."""
    from autoseg.training.operations import operation_counter

    with torch.inference_mode(), operation_counter() as counter:
        network(torch.zeros(1, 1, *bench.sizes.patch, device=bench.device))
    return counter.get_total_flops()


def _case(bench: Bench, spec: Any) -> tuple[Any, Any, Any, Any]:
    """Return what autoseg knows of a case: its properties, plans, their configuration, the labels."""
    from sides.material import plain_plans

    from autoseg.interop.nnunet_plans import read_plans
    from autoseg.labels import labels_from_description
    from autoseg.store import CaseProperties

    names = {"background": 0} | {str(value): value for value in range(1, bench.sizes.classes)}
    description = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz"}
    labels = labels_from_description(description)
    plans = read_plans(plain_plans(PLANNED), description, labels, "3d_fullres", Path("plans.json"))
    changes = {"network": spec, "patch_size": bench.sizes.patch}
    configuration = plans.configuration("3d_fullres").model_copy(update=changes)
    fine = bench.sizes.fine
    properties = CaseProperties(
        spacing=SPACING, shape_before_crop=fine, crop_box=tuple((0, size) for size in fine), shape_after_crop=fine,
        shape_resampled=bench.sizes.coarse,
    )  # fmt: skip
    return properties, plans, configuration, labels
