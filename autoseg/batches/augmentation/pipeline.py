"""Apply drawn parameters to a cut batch: the order of nnU-Net's augmentation, on the device of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoseg.batches.augmentation import filters, intensity, noise
from autoseg.batches.augmentation.parameters import SampleParameters
from autoseg.batches.augmentation.rows import apply_to_rows, slabs
from autoseg.batches.augmentation.warp import LabelBoxes, Sampling, interpolate, label_boxes, sampling, warp_labels
from autoseg.batches.batch import CutBatch, WarpSource
from autoseg.batches.geometry import turns_in_plane_only
from autoseg.batches.moving import numbers_on

_LARGEST_INT8 = 126


def looked_at(patch: Sequence[int]) -> int:
    """Return how many voxels a warp of a patch looks at: the corners of a cell for every voxel."""
    return math.prod(patch) * 2 ** len(_warped_axes(patch))


def apply_warp(batch: CutBatch) -> None:
    """Fill the places of the rotated and scaled samples of a batch, in place."""
    for cut in batch.warps:
        _warp_group(cut().to(batch.image.device), batch)


def apply_intensity(image: Tensor, parameters: Sequence[SampleParameters], *, keep: Sequence[int] = ()) -> None:
    """Apply noise, blur, brightness, contrast, low resolution and gamma to `image` (B, C, *S), in place.

    The channels to `keep` have the values they had.
    """
    channels = numbers_on(image.device, keep, torch.int64) if keep else None
    kept = None if channels is None else image.index_select(1, channels)
    keep_first = turns_in_plane_only(image.shape[2:])
    _add_noise(image, parameters)
    for sample, drawn in enumerate(parameters):
        for channel, sigmas in drawn.blur:
            filters.blur_(image[sample, channel], sigmas)
    _apply_per_channel(image, [drawn.brightness for drawn in parameters], intensity.scale_brightness_)
    _apply_per_channel(image, [drawn.contrast for drawn in parameters], intensity.scale_contrast_)
    for sample, drawn in enumerate(parameters):
        for channel, factor in drawn.low_resolution:
            filters.low_resolution_(image[sample, channel], factor, keep_first=keep_first)
    _apply_per_channel(image, [drawn.inverted_gamma for drawn in parameters], intensity.inverted_gamma_)
    _apply_per_channel(image, [drawn.gamma for drawn in parameters], intensity.gamma_)
    if channels is not None and kept is not None:
        image.index_copy_(1, channels, kept)


def zero_outside(image: Tensor, segmentation: Tensor, use_mask: Sequence[bool]) -> None:
    """Set the channels normalised within the mask to 0 where the segmentation (B, *S) is negative, in place."""
    if any(use_mask):
        outside = segmentation < 0
        for channel, masked in enumerate(use_mask):
            if masked:
                image[:, channel].masked_fill_(outside, 0)


def _warped_axes(patch: Sequence[int]) -> tuple[int, ...]:
    return tuple(patch[1:]) if turns_in_plane_only(patch) else tuple(patch)


def _warp_group(source: WarpSource, batch: CutBatch) -> None:
    """Warp the boxes of a group of samples into their places, a slab of all of them at a time."""
    patch, device = tuple(batch.segmentation.shape[1:]), batch.image.device
    warped, positions = _warped_axes(patch), source.positions
    axes, box, row = len(warped), source.image.shape[-len(warped) :], math.prod(warped[1:])
    maps = [
        (_label_boxes(labels, axes=axes), _flat(target, axes))
        for labels, target in ((source.segmentation, batch.segmentation), (source.previous, batch.previous))
        if labels is not None and target is not None
    ]
    for rows in slabs(warped[0], len(positions) * row * 2**axes, device):
        places = sampling(source.matrices, source.centres, patch=warped, box=box, device=device, rows=rows)
        voxels = slice(rows.start * row, rows.stop * row)
        _warp_images(source.image, places, positions, _flat(batch.image, axes)[..., voxels])
        for boxes, target in maps:
            _warp_label_maps(boxes, places, positions, target[..., voxels])


def _flat(tensor: Tensor, axes: int) -> Tensor:
    """View (B, ..., *S) as (B, layers, voxels), where the last `axes` axes are the voxels that are warped together."""
    return tensor.view(len(tensor), -1, tensor.shape[-axes:].numel())


def _warp_images(source: Tensor, places: Sampling, positions: Sequence[int], out: Tensor) -> None:
    """Warp (m, C, *box), or (m, C, Z, *box) with the slices as channels, into the places of `out` (B, layers, V)."""
    count = len(source)
    flat, box = source.view(-1), source.shape[-len(places.fractions) :].numel()
    layers = source[0].numel() // box
    index = places.index
    if count > 1:
        rows = numbers_on(out.device, positions, torch.int64)
        index = index + torch.arange(count, dtype=torch.int32, device=index.device).view(-1, 1) * (layers * box)
    for layer in range(layers):
        shifted = flat.narrow(0, layer * box, len(flat) - layer * box)
        if count == 1:
            interpolate(shifted, index, places, out[positions[0], layer][None])
        else:
            warped = torch.empty_like(places.fractions[0])
            interpolate(shifted, index, places, warped)
            out[:, layer].index_copy_(0, rows, warped)


def _label_boxes(source: Tensor, *, axes: int) -> list[LabelBoxes]:
    """Return label maps (m, *box) int16 for the warp; those of flat volumes (m, Z, *box) slice by slice."""
    small = source.to(torch.int8) if source.device.type == "cpu" and source.max() <= _LARGEST_INT8 else source
    layers = [small] if small.ndim == 1 + axes else [layer.contiguous() for layer in small.unbind(1)]
    return [label_boxes(layer, axes=axes) for layer in layers]


def _warp_label_maps(layers: Sequence[LabelBoxes], places: Sampling, positions: Sequence[int], out: Tensor) -> None:
    """Warp the label maps of each layer into the places of `out` (B, layers, V)."""
    for layer, boxes in enumerate(layers):
        for position, label_map in zip(positions, warp_labels(boxes, places), strict=True):
            out[position, layer] = label_map


def _add_noise(image: Tensor, parameters: Sequence[SampleParameters]) -> None:
    rows, values = [], []
    for sample, drawn in enumerate(parameters):
        for channel, key in enumerate(drawn.noise_keys):
            rows.append(sample * image.shape[1] + channel)
            values.append((drawn.noise_std, key >> 16, key & 0xFFFF))
    apply_to_rows(image, rows, values, noise.add_noise_)


def _apply_per_channel(
    image: Tensor, values: Sequence[Sequence[float]], operation: Callable[[Tensor, Tensor], None]
) -> None:
    channels = image.shape[1]
    chosen = [(s * channels + c, (value,)) for s, each in enumerate(values) for c, value in enumerate(each)]
    apply_to_rows(image, [row for row, _ in chosen], [value for _, value in chosen], operation)
