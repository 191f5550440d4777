"""Random crops of pictures, large ones and small ones, as self-distillation compares them: drawn first, then taken.

Source: Caron et al. 2021, DINO, arXiv:2104.14294 (multi-crop of SwAV, arXiv:2006.09882, with the recolouring of BYOL,
arXiv:2006.07733); written from the descriptions. Deviations: hue stays (most images are grey), saturation and loss of
colour do nothing to grey pictures; jitter has one order; both axes may be mirrored; the blur, published for crops of
224 pixels, shrinks with the crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

RATIO = 4 / 3  # largest ratio of a crop's sides
BLUR = (0.1, 2.0)  # standard deviation in pixels of a crop of `PUBLISHED_EDGE`
PUBLISHED_EDGE = 224
JITTERED, BRIGHTNESS, CONTRAST, SATURATION = 0.8, 0.4, 0.4, 0.2  # probability; largest changes of factors
GREY = 0.2  # probability that a crop loses its colour


@dataclass(frozen=True)
class View:
    """A kind of crop: the share of the picture's area that it covers, and what may be done to it."""

    edge: int  # pixels of the result
    least: float
    most: float
    blurred: float  # probability
    solarised: float  # probability
    mirror_axes: tuple[int, ...] = (0, 1)  # of the picture


@dataclass(frozen=True)
class Crop:
    """One crop as drawn: where it lies in the picture, and what is done to it."""

    edge: int
    box: tuple[int, int, int, int]  # top, left, height, width in pixels of the picture
    flipped: tuple[int, ...] = ()  # axes (height 0, width 1)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0  # standard deviation in pixels of the result
    solarised: bool = False


def multi_crop(
    large: int, small: int, number: int, *, boundary: float, least: float, mirror_axes: tuple[int, ...]
) -> list[View]:
    """Return DINO's kinds of crops: two large ones, which the teacher sees, then `number` small ones.

    Large ones cover the share `boundary` of a picture or more, small ones less than that and at least `least`.
    """
    first = View(large, boundary, 1.0, blurred=1.0, solarised=0.0, mirror_axes=mirror_axes)
    second = View(large, boundary, 1.0, blurred=0.1, solarised=0.2, mirror_axes=mirror_axes)
    return [first, second, *[View(small, least, boundary, 0.5, 0.0, mirror_axes)] * number]


def draw_crop(view: View, size: tuple[int, int], random: np.random.Generator) -> Crop:
    """Draw a crop of a picture of `size`; where a drawn box does not fit into it, its sides end at the picture's."""
    area = math.prod(size) * random.uniform(view.least, view.most)
    ratio = math.exp(random.uniform(-math.log(RATIO), math.log(RATIO)))
    height, width = (
        min(edge, max(1, round(side)))
        for edge, side in zip(size, (math.sqrt(area * ratio), math.sqrt(area / ratio)), strict=True)
    )
    top, left = (int(random.integers(edge - side + 1)) for edge, side in zip(size, (height, width), strict=True))
    flipped = tuple(axis for axis in view.mirror_axes if random.random() < 0.5)
    brightness = contrast = saturation = 1.0
    if random.random() < JITTERED:
        changes = random.uniform(-1, 1, 3) * (BRIGHTNESS, CONTRAST, SATURATION)
        brightness, contrast, saturation = (1 + changes).tolist()
    if random.random() < GREY:
        saturation = 0.0
    blur = random.uniform(*BLUR) * view.edge / PUBLISHED_EDGE if random.random() < view.blurred else 0.0
    solarised = bool(random.random() < view.solarised)
    return Crop(view.edge, (top, left, height, width), flipped, brightness, contrast, saturation, blur, solarised)


def take_crop(picture: Tensor, crop: Crop) -> Tensor:
    """Return the crop (3, edge, edge) of a picture (3, H, W), both in 0..1."""
    top, left, height, width = crop.box
    part = picture[None, :, top : top + height, left : left + width]
    part = nn.functional.interpolate(part, size=(crop.edge,) * 2, mode="bicubic", antialias=True)[0].clamp(0, 1)
    if crop.flipped:
        part = part.flip([1 + axis for axis in crop.flipped])
    part = (part * crop.brightness).clamp(0, 1)
    part = part.mean().lerp(part, crop.contrast).clamp(0, 1)
    part = part.mean(0, keepdim=True).lerp(part, crop.saturation).clamp(0, 1)
    if crop.blur > 0:
        part = blurred(part, crop.blur)
    return torch.where(part >= 0.5, 1 - part, part) if crop.solarised else part


def blurred(picture: Tensor, deviation: float) -> Tensor:
    """Return a picture (3, H, W) under a Gaussian of a standard deviation in pixels; borders are repeated."""
    reach = math.ceil(3 * deviation)
    places = torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (places / deviation).square())
    kernel = kernel / kernel.sum()
    padded = nn.functional.pad(picture[:, None], (reach,) * 4, mode="replicate")
    rows = nn.functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    return nn.functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]


def take_crops(pictures: Tensor, crops: Sequence[Sequence[Crop]]) -> list[Tensor]:
    """Return crops of pictures (B, 3, H, W), those of a size together, (views * B, 3, edge, edge), view by view.

    `crops` has, per picture, the crops of the same views, the largest first.
    """
    stacks: dict[int, list[Tensor]] = {}
    for column in zip(*crops, strict=True):
        taken = [take_crop(picture, crop) for picture, crop in zip(pictures, column, strict=True)]
        stacks.setdefault(column[0].edge, []).extend(taken)
    return [torch.stack(stack) for stack in stacks.values()]
