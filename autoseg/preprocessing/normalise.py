"""Intensity normalisation, one scheme per channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoseg.errors import UserError
from autoseg.plans import ChannelIntensities, Scheme

TINY = 1e-8  # the smallest standard deviation or range that is divided by


def normalise(
    image: np.ndarray,
    inside: np.ndarray | None,
    *,
    schemes: Sequence[Scheme],
    use_mask: Sequence[bool],
    intensities: Sequence[ChannelIntensities],
) -> np.ndarray:
    """Return a float32 image (C, Z, Y, X) with every channel normalised by its scheme.

    `inside` is the boolean non-zero region (Z, Y, X); channels with `use_mask` and scheme "zscore" take mean and
    standard deviation from it and keep their values elsewhere. Raises UserError for values that are not finite.
    """
    if len(image) != len(schemes):
        raise UserError(
            f"the image has {len(image)} channel(s), the plans know {len(schemes)}", mend="give every channel"
        )
    result = np.array(image, dtype=np.float32, order="C")
    for channel, volume in enumerate(result):
        if not np.isfinite(volume.sum(dtype=np.float64)):
            count = volume.size - int(np.isfinite(volume).sum())
            raise UserError(
                f"channel {channel} holds {count} voxel(s) that are not finite (NaN or infinite)",
                mend="replace them, for example by the value of the background",
            )
        masked = inside if use_mask[channel] else None
        known = intensities[channel] if schemes[channel] == "ct" else None
        _normalise_channel(volume, schemes[channel], masked, known)
    return result


def _normalise_channel(
    volume: np.ndarray, scheme: Scheme, inside: np.ndarray | None, known: ChannelIntensities | None
) -> None:
    """Normalise one channel in place."""
    if scheme == "zscore":
        _zscore(volume, inside)
    elif scheme == "ct":
        np.clip(volume, known.percentile_00_5, known.percentile_99_5, out=volume)
        volume -= np.float32(known.mean)
        volume /= np.float32(max(known.std, TINY))
    elif scheme == "rescale_to_0_1":
        volume -= volume.min()
        volume /= max(volume.max(), np.float32(TINY))
    elif scheme == "rgb_to_0_1":
        volume /= np.float32(255)


def _zscore(volume: np.ndarray, inside: np.ndarray | None) -> None:
    values = volume if inside is None else volume[inside]
    if values.size == 0:
        return
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    where = True if inside is None else inside
    np.subtract(volume, np.float32(mean), out=volume, where=where)
    np.divide(volume, np.float32(max(std, TINY)), out=volume, where=where)
