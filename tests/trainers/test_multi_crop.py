"""Crops for self-distillation: where they lie, what is done to them, by which key they are drawn."""

import math

import numpy as np
import pytest
import torch
from autoseg.trainers.multi_crop import (
    BLUR,
    PUBLISHED_EDGE,
    Crop,
    blurred,
    draw_crop,
    multi_crop,
    take_crop,
    take_crops,
)

WHOLE = (0, 0, 8, 8)
VIEWS = multi_crop(48, 24, 3, boundary=0.4, least=0.05, mirror_axes=(0, 1))


def drawn(view, size=(60, 80), number=400):
    random = np.random.default_rng(0)
    return [draw_crop(view, size, random) for _ in range(number)]


def test_two_large_and_some_small_kinds_as_published():
    assert [view.edge for view in VIEWS] == [48, 48, 24, 24, 24]
    assert [(view.least, view.most) for view in VIEWS[:3]] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert [(view.blurred, view.solarised) for view in VIEWS[:3]] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]


@pytest.mark.parametrize("number", [0, 2])
def test_boxes_lie_in_the_picture_and_cover_what_they_should(number):
    view = VIEWS[number]
    for crop in drawn(view):
        top, left, height, width = crop.box
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert height * width <= view.most * 4800 + (height + width)  # sides are rounded
        if height < 60 and width < 80:  # else the side ended at the picture's
            assert height * width >= view.least * 4800 - (height + width)
    ratios = [crop.box[2] / crop.box[3] for crop in drawn(VIEWS[2])]
    assert 0.6 < min(ratios) < 0.85
    assert 1.18 < max(ratios) < 1.6


def test_probabilities_and_ranges_of_what_is_done():
    first, second, small = drawn(VIEWS[0]), drawn(VIEWS[1]), drawn(VIEWS[2])
    assert all(crop.blur > 0 for crop in first)
    assert not any(crop.solarised for crop in (*first, *small))
    assert 0.05 < np.mean([crop.blur > 0 for crop in second]) < 0.15
    assert 0.14 < np.mean([crop.solarised for crop in second]) < 0.26
    assert 0.42 < np.mean([crop.blur > 0 for crop in small]) < 0.58
    assert 0.42 < np.mean([0 in crop.flipped for crop in small]) < 0.58
    assert 0.14 < np.mean([crop.saturation == 0 for crop in small]) < 0.26
    assert 0.14 < np.mean([crop.brightness == 1 for crop in small]) < 0.26
    assert all(0.6 <= crop.brightness <= 1.4 and 0.6 <= crop.contrast <= 1.4 for crop in small)
    scale = 48 / PUBLISHED_EDGE
    assert all(BLUR[0] * scale <= crop.blur <= BLUR[1] * scale for crop in first)
    still = multi_crop(48, 24, 1, boundary=0.4, least=0.05, mirror_axes=())
    assert not any(crop.flipped for crop in drawn(still[0]))


def test_a_whole_crop_is_the_picture_and_parts_by_hand():
    picture = torch.rand(3, 8, 8)
    torch.testing.assert_close(take_crop(picture, Crop(8, WHOLE)), picture)
    corner = take_crop(picture, Crop(4, (2, 3, 4, 4)))
    torch.testing.assert_close(corner, picture[:, 2:6, 3:7])
    assert take_crop(picture, Crop(16, (1, 1, 5, 3))).shape == (3, 16, 16)
    torch.testing.assert_close(take_crop(picture, Crop(8, WHOLE, flipped=(1,))), picture.flip(2))


def test_recolouring_by_hand():
    picture = 0.5 * torch.rand(3, 8, 8)
    torch.testing.assert_close(take_crop(picture, Crop(8, WHOLE, brightness=1.4)), picture * 1.4)
    mean = picture.mean()
    torch.testing.assert_close(take_crop(picture, Crop(8, WHOLE, contrast=0.6)), mean + 0.6 * (picture - mean))
    grey = picture.mean(0, keepdim=True).expand(3, -1, -1)
    torch.testing.assert_close(take_crop(picture, Crop(8, WHOLE, saturation=0.0)), grey)
    torch.testing.assert_close(take_crop(grey, Crop(8, WHOLE, saturation=0.8)), grey)
    shown = take_crop(torch.tensor([0.2, 0.8]).view(1, 1, 2).expand(3, 2, 2), Crop(2, (0, 0, 2, 2), solarised=True))
    torch.testing.assert_close(shown, torch.full((3, 2, 2), 0.2))


def test_the_blur_is_a_gaussian():
    point = torch.zeros(3, 31, 31)
    point[:, 15, 15] = 1
    spread = blurred(point, 2.0)
    torch.testing.assert_close(spread.sum((1, 2)), torch.ones(3))
    assert spread[0, 15, 17] / spread[0, 15, 15] == pytest.approx(math.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(blurred(torch.full((3, 5, 5), 0.3), 3.0), torch.full((3, 5, 5), 0.3))


def test_crops_of_a_size_come_together_view_by_view():
    pictures = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8) / 4
    crops = [[Crop(4, WHOLE), Crop(4, WHOLE, brightness=2.0), Crop(2, WHOLE)]] * 2
    large, small = take_crops(pictures, crops)
    assert large[:, 0, 0, 0].tolist() == pytest.approx([0, 0.25, 0, 0.5], abs=1e-6)
    assert small[:, 0, 0, 0].tolist() == pytest.approx([0, 0.25], abs=1e-6)
    assert (large.shape, small.shape) == ((4, 3, 4, 4), (2, 3, 2, 2))
