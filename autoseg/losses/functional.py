"""Losses as plain functions of logits and an integer target, for trainers that compose their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from autoseg.losses.dice import SMOOTH, negative_dice
from autoseg.losses.sums import Sums, softmax_sums


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    batch_dice: bool = False,
    background: bool = False,
    ignore_index: int | None = None,
    smooth: float = SMOOTH,
) -> Tensor:
    """Return minus the mean soft Dice over classes (without class 0 unless `background`) and samples, in -1..0.

    logits (B, K, *S), target (B, *S) integer in 0..K-1 or `ignore_index`.
    """
    check_shapes(logits, target)
    with told_outside(logits, target):
        sums = softmax_sums(logits, target, _valid(target, ignore_index))
    return negative_dice(sums if background else without_background(sums), batch_dice=batch_dice, smooth=smooth)


def cross_entropy_loss(logits: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """Return the mean cross-entropy over the voxels that are not ignored, 0 if there are none.

    logits (B, K, *S), target (B, *S) integer in 0..K-1 or `ignore_index`.
    """
    return focal_loss(logits, target, gamma=0.0, ignore_index=ignore_index)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    ignore_index: int | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean of (1 - p)^gamma times the cross-entropy, p being the probability of the target.

    Shapes as for `cross_entropy_loss`, which is the case gamma = 0. `class_weights` (K,) multiply the terms of voxels
    by their class; the mean is over voxels all the same. Source: Lin et al. 2017, arXiv:1708.02002.
    """
    check_shapes(logits, target)
    skipped = -100 if ignore_index is None else ignore_index
    with told_outside(logits, target):
        entropy = functional.cross_entropy(logits.float(), target.long(), ignore_index=skipped, reduction="none")
    entropy = focused(entropy, gamma)
    valid = _valid(target, ignore_index)
    if class_weights is not None:
        index = target if valid is None else target * valid
        entropy = entropy * class_weights.to(entropy.device)[index.long()]
    return entropy.mean() if valid is None else entropy.sum() / valid.sum().clamp_min(1)


def focused(entropy: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma times an entropy of -log p, element by element."""
    if not gamma:
        return entropy
    missing = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)  # keeps the slope finite at 0
    return missing**gamma * entropy


def without_background(sums: Sums) -> Sums:
    """Return the sums of the classes from 1 on."""
    return Sums(sums.cross_entropy, *(each[:, 1:] for each in sums[1:]))


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless logits (B, K, *S) and target (B, *S) fit."""
    if logits.shape[:1] + logits.shape[2:] != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} need a target (B, *S), got {tuple(target.shape)}")


@contextlib.contextmanager
def told_outside(logits: Tensor, target: Tensor) -> Iterator[None]:
    """Raise a ValueError where a step fails as the target has values without an output; costs nothing otherwise.

    On a GPU torch notices later and stops the process; the message is that of the CPU.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if target.device.type != "cpu" or target.max() < logits.shape[1]:
            raise
        raise ValueError(
            f"the target has the value {int(target.max())}, the outputs are for 0 to {logits.shape[1] - 1}; where the "
            "data set has an ignore label, pass ignore_index=self.labels.ignore_index"
        ) from error


def _valid(target: Tensor, ignore_index: int | None) -> Tensor | None:
    return None if ignore_index is None else target != ignore_index
