"""Soft Dice from sums over voxels."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from autoseg.losses.sums import Sums

SMOOTH = 1e-5
_SMALLEST = 1e-8


def negative_dice(sums: Sums, *, batch_dice: bool, weights: Tensor | None = None, smooth: float = SMOOTH) -> Tensor:
    """Return minus the mean soft Dice of the sums (B, K), in -1..0.

    With `batch_dice` the sums are added over the batch, and over all processes of a distributed run, before the ratio
    is taken. `weights` (B, K) of 0 and 1 tell which samples count for which class; None: all.
    """
    terms = torch.stack([sums.intersection, sums.predicted, sums.reference])
    if batch_dice:
        if weights is not None:
            terms, weights = terms * weights, weights.sum(0, keepdim=True)
        terms = terms.sum(1, keepdim=True)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            terms = _sum_over_processes(terms)
            weights = None if weights is None else _sum_over_processes(weights)
        weights = None if weights is None else (weights > 0).to(terms.dtype)
    intersection, predicted, reference = terms
    dice = (2 * intersection + smooth) / (predicted + reference + smooth).clamp_min(_SMALLEST)
    if weights is None:
        return -dice.mean()
    return -(dice * weights).sum() / weights.sum().clamp_min(1)


def _sum_over_processes(values: Tensor) -> Tensor:
    """Add over processes; the gradient is added over them too, as data-parallel averaging expects."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)
