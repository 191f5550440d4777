"""Use transforms of batchgenerators (v1: dictionaries of numpy arrays; v2: one sample of tensors) on batches."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autoseg.batches.batch import Batch
from autoseg.randomness import seed_for

_GLOBAL_STATE = threading.Lock()  # these transforms draw from the global generators of numpy, random and torch


class BatchgeneratorsTransform:
    """A transform as a function Batch -> Batch whose randomness depends on (seed, name, step) alone.

    v1 transforms get `data` (B, C, *S) and `seg` (B, 1, *S) float32; v2 transforms get `image` (C, *S) and
    `segmentation` (1, *S) of one sample after the other. The label map of a previous stage travels as a second
    channel of the segmentation. Runs on the CPU, one batch at a time; results return to the device of the batch.
    """

    def __init__(self, transform: Any, *, seed: int, name: str = "batchgenerators"):
        self.transform = transform
        self.seed = seed
        self.name = name

    def __call__(self, batch: Batch) -> Batch:
        """Return the transformed batch."""
        image = batch.image.cpu()
        labels = [batch.segmentation] if batch.previous is None else [batch.segmentation, batch.previous]
        segmentation = torch.stack([label.cpu() for label in labels], dim=1)
        with _seeded(seed_for(self.seed, self.name, batch.step)):
            single = hasattr(self.transform, "get_parameters")  # the interface of v2
            image, segmentation = (self._per_sample if single else self._whole)(image, segmentation)
        device = batch.image.device
        segmentation = segmentation.round().to(torch.int16) if segmentation.is_floating_point() else segmentation
        maps = [label.to(device) for label in segmentation.to(torch.int16).unbind(1)]
        return replace(
            batch,
            image=image.to(device, torch.float32),
            segmentation=maps[0],
            previous=maps[1] if len(maps) > 1 else None,
        )

    def _whole(self, image: torch.Tensor, segmentation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.transform(data=image.numpy().copy(), seg=segmentation.numpy().astype(np.float32))
        return tuple(torch.from_numpy(np.ascontiguousarray(result[key])) for key in ("data", "seg"))

    def _per_sample(self, image: torch.Tensor, segmentation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        results = [
            self.transform(image=one.clone(), segmentation=map_.clone())
            for one, map_ in zip(image, segmentation, strict=True)
        ]
        return tuple(torch.stack([result[key] for result in results]) for key in ("image", "segmentation"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a while; their former states come back."""
    with _GLOBAL_STATE, torch.random.fork_rng(devices=[]):
        former_numpy, former_python = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            np.random.set_state(former_numpy)  # noqa: NPY002
            random.setstate(former_python)
