"""Patches for training: sampled, cut, augmented and made ahead, as a pure function of (seed, stream, step)."""

from autoseg.batches.batch import Batch, CutBatch
from autoseg.batches.batchgenerators_adapter import BatchgeneratorsTransform
from autoseg.batches.geometry import initial_patch_size
from autoseg.batches.hidden import HiddenLabels
from autoseg.batches.prefetch import BatchError, Prefetcher
from autoseg.batches.settings import StreamSettings
from autoseg.batches.stream import PatchStream

__all__ = [
    "Batch",
    "BatchError",
    "BatchgeneratorsTransform",
    "CutBatch",
    "HiddenLabels",
    "PatchStream",
    "Prefetcher",
    "StreamSettings",
    "initial_patch_size",
]
