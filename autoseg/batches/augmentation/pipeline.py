"""Apply drawn parameters to a cut batch: the order of nnU-Net's augmentation, on the device of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoseg.batches.augmentation import filters, intensity, noise
from autoseg.batches.augmentation.parameters import SampleParameters
from autoseg.batches.augmentation.rows import apply_to_rows, chunks
from autoseg.batches.augmentation.warp import Sampling, interpolate, sampling, warp_labels
from autoseg.batches.batch import CutBatch
from autoseg.batches.geometry import turns_in_plane_only
from autoseg.batches.moving import numbers_on

_LARGEST_INT8 = 126


def apply_warp(batch: CutBatch) -> None:
    """Fill the places of the rotated and scaled samples of a batch, in place."""
    source = batch.warp
    if source is None:
        return
    patch = tuple(batch.segmentation.shape[1:])
    flat_volume = turns_in_plane_only(patch)
    plane, box = (patch[1:], source.image.shape[3:]) if flat_volume else (patch, source.image.shape[2:])
    looked_at = batch.segmentation[0].numel() * 2 ** len(plane)  # every voxel looks at the corners of a cell
    for part in chunks(len(source.positions), looked_at, batch.image.device):
        places = sampling(source.matrices[part], source.centres[part], patch=plane, box=box, device=batch.image.device)
        positions = source.positions[part]
        _warp_images(source.image[part], places, positions, batch.image)
        for labels, target in ((source.segmentation, batch.segmentation), (source.previous, batch.previous)):
            if labels is not None and target is not None:
                _warp_label_maps(labels[part], places, positions, target, flat_volume=flat_volume)


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


def _warp_images(source: Tensor, places: Sampling, positions: Sequence[int], out: Tensor) -> None:
    """Warp (m, C, *box), or (m, C, Z, *box) with the slices as channels, into the places of `out` (B, C, *S)."""
    count = len(source)
    flat, box = source.view(-1), source.shape[-len(places.fractions) :].numel()
    layers = source[0].numel() // box
    target = out.view(len(out), layers, -1)
    index = places.index
    if count > 1:
        rows = numbers_on(out.device, positions, torch.int64)
        index = index + torch.arange(count, dtype=torch.int32, device=index.device).view(-1, 1) * (layers * box)
    for layer in range(layers):
        shifted = flat.narrow(0, layer * box, len(flat) - layer * box)
        if count == 1:
            interpolate(shifted, index, places, target[positions[0], layer][None])
        else:
            warped = torch.empty_like(places.fractions[0])
            interpolate(shifted, index, places, warped)
            target[:, layer].index_copy_(0, rows, warped)


def _warp_label_maps(
    source: Tensor, places: Sampling, positions: Sequence[int], out: Tensor, *, flat_volume: bool
) -> None:
    """Warp (m, *box) int16 into the places of `out` (B, *S); of flat volumes slice by slice."""
    axes = len(places.fractions)
    small = source.to(torch.int8) if source.device.type == "cpu" and source.max() <= _LARGEST_INT8 else source
    if flat_volume:
        layers = [warp_labels(layer.contiguous(), places, axes=axes) for layer in small.unbind(1)]
        warped = torch.stack(layers, dim=1)
    else:
        warped = warp_labels(small, places, axes=axes)
    for position, label_map in zip(positions, warped, strict=True):
        out[position] = label_map.view(out.shape[1:])


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
