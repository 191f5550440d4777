"""One composed rotation, scaling and mirroring per sample, linear for the image, for labels by majority of weights.

Every output voxel looks at the 2^d corners of the cell it falls into. One index per voxel addresses the lower corner;
the other corners are the same index into a shifted view of the source, so nothing else is computed per corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.batches.moving import to_device

_NEAREST_FIRST = 1e-4  # of the weight of a corner is added to its label: the nearest decides between equals


@dataclass(frozen=True)
class Sampling:
    """Where the V voxels of m patches, or of the same rows of them, lie in their boxes (d axes)."""

    index: Tensor  # (m, V) int32, flat position of the lower corner within one box
    fractions: tuple[Tensor, ...]  # d times (m, V) float32 in [0, 1): distance from the lower corner
    corners: tuple[int, ...]  # flat offsets of the 2^d corners, the last axis changes fastest


@dataclass(frozen=True)
class LabelBoxes:
    """Label maps of m boxes of so many voxels, one after the other."""

    labels: Tensor  # (m * voxels,) int8 or int16
    cells: Tensor  # (m * voxels,) label of the cell above each voxel if all corners have it, else the sentinel
    voxels: int

    @property
    def sentinel(self) -> int:
        """The smallest number of the type, which is no label."""
        return torch.iinfo(self.labels.dtype).min


def sampling(
    matrices: np.ndarray,
    centres: np.ndarray,
    *,
    patch: Sequence[int],
    box: Sequence[int],
    device: torch.device,
    rows: slice = slice(None),
) -> Sampling:
    """Map the voxels of a patch, centred, by `matrices` (m, d, d) to boxes, their centres being `centres` (m, d).

    `rows` chooses along the first axis of the patch. Coordinates are clamped to the box less its last layer: a box has
    one layer of outside values below and two above wherever the patch reaches outside.
    """
    axes = len(patch)
    index, fractions = None, []
    strides = [int(np.prod(box[axis + 1 :])) for axis in range(axes)]
    lines = [to_device(torch.from_numpy(line), device) for line in _lines(matrices, centres, patch, rows)]
    for axis in range(axes):
        where = _coordinate([line[:, axis] for line in lines]).clamp_(0, box[axis] - 2)
        cell = where.to(torch.int32)
        fractions.append(where.frac_())
        index = cell.mul_(strides[axis]) if index is None else index.add_(cell, alpha=strides[axis])
    corners = [0]
    for stride in strides:
        corners = [corner + step for corner in corners for step in (0, stride)]
    return Sampling(index, tuple(fractions), tuple(corners))


def _lines(matrices: np.ndarray, centres: np.ndarray, patch: Sequence[int], rows: slice) -> list[np.ndarray]:
    """Return for each patch axis (m, d, size) float32: what it adds to the coordinate along each axis of the box."""
    parts = [matrices[:, :, axis, None] * (np.arange(size) - (size - 1) / 2) for axis, size in enumerate(patch)]
    parts[0] = (parts[0] + centres[:, :, None])[:, :, rows]
    return [part.astype(np.float32) for part in parts]


def _coordinate(lines: Sequence[Tensor]) -> Tensor:
    """Return (m, V) coordinates along one axis of the box: the sum of one line (m, size) per patch axis."""
    count, total = len(lines[0]), None
    for axis, line in enumerate(lines):
        shape = [count] + [line.shape[1] if other == axis else 1 for other in range(len(lines))]
        line = line.view(shape)
        total = line if total is None else total + line
    return total.reshape(count, -1)


def interpolate(source: Tensor, index: Tensor, places: Sampling, out: Tensor) -> None:
    """Write the linear interpolation of a flat `source` at `index` (m, V) into `out` (m, V).

    `index` is that of `places` plus whatever selects sample and channel in the flat source.
    """
    flat = index.view(-1)
    values = [_shifted(source, corner).index_select(0, flat) for corner in places.corners]
    for axis in reversed(range(1, len(places.fractions))):
        weight = places.fractions[axis].reshape(-1)
        values = [low.lerp_(high, weight) for low, high in zip(values[::2], values[1::2], strict=True)]
    low, high = (value.view_as(index) for value in values)
    torch.lerp(low, high, places.fractions[0], out=out)


def label_boxes(source: Tensor, *, axes: int) -> LabelBoxes:
    """Return the label maps `source` (m, *box), int8 or int16, as `warp_labels` needs them."""
    sentinel = torch.iinfo(source.dtype).min
    return LabelBoxes(source.view(-1), _agreed(source, axes, sentinel).view(-1), source[0].numel())


def warp_labels(source: LabelBoxes, places: Sampling) -> Tensor:
    """Return (m, V) labels: the argmax over the linearly interpolated one-hots of `source`.

    Most voxels fall into cells whose corners agree; only the others are put to the vote. Among labels of equal weight
    that of the nearest corner wins.
    """
    index, count = places.index, len(places.index)
    if count > 1:
        index = index + _steps(count, source.voxels, index.device)
    flat_index = index.reshape(-1)
    labels = source.cells.index_select(0, flat_index)
    decide = _decide_found if index.device.type == "cpu" else _decide_all
    return decide(labels, source, flat_index, places).view_as(places.index)


def _agreed(source: Tensor, axes: int, sentinel: int) -> Tensor:
    """Return the label of every cell whose corners agree, else `sentinel`; the upper faces have no cell."""
    agree = None
    for axis in range(source.ndim - axes, source.ndim):
        size = source.shape[axis] - 1
        same = source.narrow(axis, 0, size) == source.narrow(axis, 1, size)
        if agree is not None:
            for earlier in range(source.ndim - axes, axis):
                same = same.narrow(earlier, 0, agree.shape[earlier])
            same = same & agree.narrow(axis, 0, size) & agree.narrow(axis, 1, size)
        agree = same
    inner = tuple(slice(0, size) for size in agree.shape)
    mask = agree.to(source.dtype).neg_()  # all bits where the corners agree; faster than torch.where
    cells = torch.full_like(source, sentinel)
    cells[inner] = source[inner].bitwise_and(mask).bitwise_or_(mask.bitwise_not_().bitwise_and_(sentinel))
    return cells


def _decide_found(labels: Tensor, source: LabelBoxes, index: Tensor, places: Sampling) -> Tensor:
    """Vote where `labels` (n,) has the sentinel; numpy, on the CPU, finds these places faster than torch."""
    chosen = torch.from_numpy(np.flatnonzero(labels.numpy() == source.sentinel))
    if len(chosen) == 0:
        return labels
    return labels.index_copy_(0, chosen, _vote(source.labels, index.index_select(0, chosen), places, chosen))


def _decide_all(labels: Tensor, source: LabelBoxes, index: Tensor, places: Sampling) -> Tensor:
    """Vote everywhere and take the result where `labels` (n,) has the sentinel: a GPU need not be waited for."""
    everything = torch.arange(len(index), device=index.device)
    return torch.where(labels == source.sentinel, _vote(source.labels, index, places, everything), labels)


def _vote(source: Tensor, index: Tensor, places: Sampling, chosen: Tensor) -> Tensor:
    """Return for `index` (n,) the label with the largest sum of corner weights.

    Labels and decisions are kept as float32, which torch compares and selects several times faster than integers.
    """
    labels = torch.stack([_shifted(source, corner).index_select(0, index) for corner in places.corners]).float()
    weights = _corner_weights([fraction.reshape(-1).index_select(0, chosen) for fraction in places.fractions])
    same = torch.empty_like(weights)
    best = torch.full_like(weights[0], -1.0)
    winner, better = labels[0].clone(), torch.empty_like(best)
    for label, weight in zip(labels, weights, strict=True):
        score = torch.eq(labels, label, out=same).mul_(weights).sum(0)
        score.add_(weight, alpha=_NEAREST_FIRST)
        torch.gt(score, best, out=better)
        torch.maximum(score, best, out=best)
        winner.lerp_(label, better)  # by 0 or 1
    return winner.to(source.dtype)


def _corner_weights(fractions: Sequence[Tensor]) -> Tensor:
    """Return (2^d, n) weights in the order of the corners."""
    weights = torch.ones_like(fractions[0])[None]
    for fraction in fractions:
        weights = torch.stack([weights * (1 - fraction), weights * fraction], dim=1).flatten(0, 1)
    return weights


def _shifted(source: Tensor, offset: int) -> Tensor:
    return source.narrow(0, offset, len(source) - offset)


def _steps(count: int, size: int, device: torch.device) -> Tensor:
    """Return (count, 1) int32 offsets of consecutive boxes."""
    return (torch.arange(count, dtype=torch.int32, device=device) * size).view(-1, 1)
