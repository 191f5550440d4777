"""What happens to one sample: every random decision of nnU-Net's augmentation, drawn before anything is applied.

Source: nnU-Net v2 and batchgeneratorsv2 (Apache-2.0): same transforms, order, probabilities and ranges. Deviation: the
mirroring, which they do near the end, is folded into the cutting or the warp; it commutes with what lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoseg.batches.augmentation.draws import Draws
from autoseg.batches.geometry import rotation_limit, rotation_matrix, turns_in_plane_only

Level = Literal["full", "light", "spatial", "none"]

ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY = 0.2
SCALING = (0.7, 1.4)  # above 1 a larger area is seen, so objects become smaller
NOISE_PROBABILITY = 0.1
NOISE_STD = (0.0, 0.1)
BLUR_PROBABILITY, BLUR_CHANNEL = 0.2, 0.5
BLUR_SIGMA = (0.5, 1.0)  # voxels
BRIGHTNESS_PROBABILITY = 0.15
CONTRAST_PROBABILITY = 0.15
CONTRAST = (0.75, 1.25)  # of brightness and contrast
LOW_RESOLUTION_PROBABILITY, LOW_RESOLUTION_CHANNEL = 0.25, 0.5
LOW_RESOLUTION = (0.5, 1.0)
INVERTED_GAMMA_PROBABILITY = 0.1
GAMMA_PROBABILITY = 0.3
GAMMA = (0.7, 1.5)
MIRROR_PROBABILITY = 0.5


@dataclass(frozen=True)
class SampleParameters:
    """All decisions for one sample; empty tuples and None mean that the transform is not applied."""

    flips: tuple[bool, ...]  # per axis of the patch
    warp: np.ndarray | None = None  # (d, d) rotation and scaling about the centre, without the flips
    noise_std: float = 0.0
    noise_keys: tuple[int, ...] = ()  # one per channel
    blur: tuple[tuple[int, tuple[float, ...]], ...] = ()  # (channel, sigma per axis)
    brightness: tuple[float, ...] = ()  # one per channel
    contrast: tuple[float, ...] = ()  # one per channel
    low_resolution: tuple[tuple[int, float], ...] = ()  # (channel, factor)
    inverted_gamma: tuple[float, ...] = ()  # one per channel
    gamma: tuple[float, ...] = ()  # one per channel

    @property
    def folded_warp(self) -> np.ndarray | None:
        """Return the warp with the flips of its axes folded in."""
        if self.warp is None:
            return None
        signs = [-1.0 if flip else 1.0 for flip in self.flips[-len(self.warp) :]]
        return self.warp * np.asarray(signs)


def draw_parameters(
    generator: np.random.Generator,
    *,
    patch_size: Sequence[int],
    channels: int,
    mirror_axes: Sequence[int],
    level: Level = "full",
) -> SampleParameters:
    """Draw the decisions for one sample.

    "light" leaves out warp, blur and low resolution, the costly ones; "spatial" has only warp and mirroring; "none"
    leaves the sample as it is.
    """
    if level == "none":
        return SampleParameters(flips=(False,) * len(patch_size))
    draws, full = Draws(generator), level == "full"
    if level == "spatial":
        return SampleParameters(warp=_draw_warp(draws, patch_size), flips=_draw_flips(draws, patch_size, mirror_axes))
    each = range(channels)
    return SampleParameters(
        warp=_draw_warp(draws, patch_size) if full else None,
        noise_std=(noise := draws.uniform(*NOISE_STD) if draws.chance(NOISE_PROBABILITY) else 0.0),
        noise_keys=tuple(draws.key() for _ in each) if noise else (),
        blur=_draw_blur(draws, channels, len(patch_size)) if full and draws.chance(BLUR_PROBABILITY) else (),
        brightness=_per_channel(draws, each, BRIGHTNESS_PROBABILITY, CONTRAST),
        contrast=_per_channel(draws, each, CONTRAST_PROBABILITY, CONTRAST),
        low_resolution=_draw_low_resolution(draws, each) if full and draws.chance(LOW_RESOLUTION_PROBABILITY) else (),
        inverted_gamma=_per_channel(draws, each, INVERTED_GAMMA_PROBABILITY, GAMMA),
        gamma=_per_channel(draws, each, GAMMA_PROBABILITY, GAMMA),
        flips=_draw_flips(draws, patch_size, mirror_axes),
    )


def _draw_flips(draws: Draws, patch_size: Sequence[int], mirror_axes: Sequence[int]) -> tuple[bool, ...]:
    return tuple(axis in mirror_axes and draws.chance(MIRROR_PROBABILITY) for axis in range(len(patch_size)))


def _draw_warp(draws: Draws, patch_size: Sequence[int]) -> np.ndarray | None:
    """Return Rz Ry Rx S, or None when neither is drawn."""
    rotate, scale = draws.chance(ROTATION_PROBABILITY), draws.chance(SCALING_PROBABILITY)
    if not (rotate or scale):
        return None
    axes = 2 if turns_in_plane_only(patch_size) else len(patch_size)
    matrix = np.eye(axes)
    if rotate:
        limit = rotation_limit(patch_size)
        matrix = rotation_matrix([draws.uniform(-limit, limit) for _ in range(1 if axes == 2 else 3)])
    return matrix * draws.uniform(*SCALING) if scale else matrix


def _draw_blur(draws: Draws, channels: int, axes: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
    chosen = [channel for channel in range(channels) if draws.chance(BLUR_CHANNEL)]
    return tuple((channel, tuple(draws.uniform(*BLUR_SIGMA) for _ in range(axes))) for channel in chosen)


def _draw_low_resolution(draws: Draws, channels: range) -> tuple[tuple[int, float], ...]:
    chosen = [channel for channel in channels if draws.chance(LOW_RESOLUTION_CHANNEL)]
    return tuple((channel, draws.uniform(*LOW_RESOLUTION)) for channel in chosen)


def _per_channel(draws: Draws, channels: range, probability: float, limits: tuple[float, float]) -> tuple[float, ...]:
    return tuple(draws.factor(*limits) for _ in channels) if draws.chance(probability) else ()
