"""How whole-case validation fits into a time budget: what it will take, and how densely tiles may overlap."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autoseg.inference import logits_to_label_map, predict_preprocessed
from autoseg.inference.tile_pass import patches_per_call
from autoseg.inference.tiles import make_tiles
from autoseg.plans import Configuration
from autoseg.training.checkpoint import unwrapped
from autoseg.training.thread_count import candidates
from autoseg.training.trainer import Trainer
from autoseg.training.validation import labelled_cases, score

STEP_SIZES = (0.5, 0.75, 1.0)  # of the patch; nnU-Net's first, with 1.0 every voxel is predicted once
LARGEST_SHARE = 0.35  # of a fold's time that validation may take before tiles overlap less
LEEWAY = 1.15  # on the estimate


@dataclass(frozen=True)
class ValidationPlan:
    """How the cases of a fold are validated: `step_size` between tiles, as a share of the patch, and its `seconds`."""

    step_size: float = 0.5
    seconds: float = 0.0
    cases: int = 0

    def observable(self, seconds: float) -> int:
        """Return how many cases can be predicted in so many seconds."""
        return self.cases if self.seconds <= 0 else int(seconds / self.seconds * self.cases)


def plan_validation(trainer: Trainer, device: torch.device, budget: float) -> ValidationPlan:
    """Return the densest tiles with which validation stays below its share of `budget` seconds, else the sparsest.

    One tile is timed, and what comes after the network on the smallest case; both are scaled to all cases.
    """
    context = trainer.context
    cases = labelled_cases(context)
    if not cases:
        return ValidationPlan()
    shapes = {case: context.store.read(case).shape for case in cases}
    smallest = min(cases, key=lambda case: int(np.prod(shapes[case])))
    voxels = sum(int(np.prod(shape)) for shape in shapes.values())
    after = _seconds_after_network(smallest, trainer) * voxels / int(np.prod(shapes[smallest]))
    tile = _tile_seconds(trainer, device)
    plan = ValidationPlan()
    for step_size in STEP_SIZES:
        tiles = sum(count_tiles(shape, context.configuration.patch_size, step_size) for shape in shapes.values())
        plan = ValidationPlan(step_size, LEEWAY * (tile * tiles + after) + 0.02 * len(cases), len(cases))
        if plan.seconds <= LARGEST_SHARE * budget:
            break
    return plan


def count_tiles(shape: Sequence[int], patch_size: Sequence[int], step_size: float) -> int:
    """Return how many tiles a volume (Z, Y, X) takes."""
    patch = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    return len(make_tiles([max(pair) for pair in zip(shape, patch, strict=True)], patch_size, step_size))


def _tile_seconds(trainer: Trainer, device: torch.device) -> float:
    """Return the seconds of one tile with all its mirrors, with the better of the thread counts."""
    configuration = trainer.context.configuration
    network = unwrapped(trainer.inference_module())
    _predict_tiles(network, configuration, trainer, device)  # the first call warms caches up
    before, times = torch.get_num_threads(), []
    for threads in candidates(device):
        torch.set_num_threads(threads)
        started = time.monotonic()
        tiles = _predict_tiles(network, configuration, trainer, device)
        times.append((time.monotonic() - started) / tiles)
    torch.set_num_threads(before)
    return min(times)


def _predict_tiles(network: nn.Module, configuration: Configuration, trainer: Trainer, device: torch.device) -> int:
    """Predict an image that takes one call of the network; returns the number of its tiles."""
    patch = configuration.patch_size
    count = min(patches_per_call(patch, device), 16)
    size = (count, *patch) if len(patch) == 2 else (patch[0] + (count - 1) * (patch[0] // 2), *patch[1:])
    image = torch.zeros(configuration.network.in_channels, *size)
    predict_preprocessed(
        [network], image, configuration, mirror_axes=trainer.mirror_axes(), device=device, precision=trainer.precision
    )
    return count_tiles(size, patch, STEP_SIZES[0])


def _seconds_after_network(case: str, trainer: Trainer) -> float:
    """Return the seconds of decision, resampling and scoring of one case."""
    context = trainer.context
    stored = context.store.read(case)
    logits = torch.zeros(context.configuration.network.num_outputs, *stored.shape)
    # The true foreground as one label, so that surfaces are measured as well.
    logits[-1] = torch.from_numpy(stored.label()).gt(0).float() - 0.5
    started = time.monotonic()
    label = logits_to_label_map(logits, stored.properties, context.plans, context.configuration, trainer.labels)
    score(case, label, context)
    return time.monotonic() - started
