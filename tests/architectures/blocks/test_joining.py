"""Upsampled maps joined with their skips part by part are what upsampling and concatenating gives."""

import pytest
import torch
from autoseg.architectures.blocks import joining
from autoseg.architectures.blocks.joining import joined
from torch import nn

from autoseg.cpu_layers import suit_to_cpu

UPSAMPLINGS = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {2: (9, 6), 3: (9, 4, 5)}


@pytest.fixture(autouse=True)
def as_few_rows_as_may_be(monkeypatch):
    monkeypatch.setattr(joining, "VALUES_AT_ONCE", 1)


def maps(stride, images=1, size=None):
    """Return an upsampling by this stride from 4 to 2 channels, its input, and a skip of 3 channels."""
    torch.manual_seed(0)
    dims = len(stride)
    size = size or SIZES[dims]
    skip = torch.randn(images, 3, *(length * factor for length, factor in zip(size, stride, strict=True)))
    return UPSAMPLINGS[dims](4, 2, stride, stride), torch.randn(images, 4, *size), skip


def rows_of_parts(upsample, x, skip):
    """Return the joined map, and how many rows each call of the upsampling had."""
    rows, own = [], type(upsample).forward

    def seen(self, part, *others):
        rows.append(part.shape[2])
        return own(self, part, *others)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(upsample), "forward", seen)
        return joined(upsample, x, skip), rows


@pytest.mark.parametrize("suited", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [(2, 2), (2, 2, 2), (1, 2, 2), (3, 1, 2)], ids=str)
def test_parts_make_the_whole(stride, precision, channels_last, suited):
    upsample, x, skip = maps(stride)
    layout = LAYOUTS[len(stride)] if channels_last else torch.contiguous_format
    x, skip = (each.contiguous(memory_format=layout) for each in (x, skip))
    if suited:
        suit_to_cpu(upsample)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected = torch.cat((upsample(x), skip), 1)
        found, rows = rows_of_parts(upsample, x, skip)
    assert rows == [3, 2, 2, 2]
    assert found.dtype == expected.dtype == torch.float32
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("of_parts", "of_skip", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_number_formats_are_joined_as_torch_joins_them(of_parts, of_skip, expected):
    upsample, x, skip = maps((2, 2, 2))
    found, rows = rows_of_parts(upsample.to(of_parts), x.to(of_parts), skip.to(of_skip))
    assert len(rows) == 4
    assert found.dtype == expected


ROW = 480  # values of the skip beside a row of the map: 3 channels of 2x8x10


@pytest.mark.parametrize(
    ("values", "expected"), [(9 * ROW, [9]), (9 * ROW - 1, [5, 4]), (5 * ROW, [5, 4]), (5 * ROW - 1, [3, 3, 3])]
)
def test_parts_are_as_large_as_they_may_be(values, expected, monkeypatch):
    monkeypatch.setattr(joining, "VALUES_AT_ONCE", values)
    assert rows_of_parts(*maps((2, 2, 2)))[1] == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_rows_are_not_divided(rows):
    assert rows_of_parts(*maps((2, 2, 2), size=(rows, 4, 5)))[1] == [rows]


class Doubling(nn.ConvTranspose3d):
    def forward(self, x):
        return 2 * super().forward(x) / x.shape[2]


UNDIVIDED = {
    "two images": maps((2, 2, 2), images=2),
    "no image": tuple(each[:0] if isinstance(each, torch.Tensor) else each for each in maps((2, 2, 2))),
    "no channels": (*maps((2, 2, 2))[:2], maps((2, 2, 2))[2][:, :0]),
    "another class": (Doubling(4, 2, 2, 2), *maps((2, 2, 2))[1:]),
    "overlapping": (nn.ConvTranspose3d(4, 2, (4, 2, 2), 2, (1, 0, 0)), *maps((2, 2, 2))[1:]),
    "padded": (nn.ConvTranspose3d(4, 2, 3, 3, (1, 0, 0), (2, 0, 0)), *maps((3, 3, 3))[1:]),
    "dilated": (nn.ConvTranspose3d(4, 2, 2, 2, dilation=(3, 1, 1)), maps((2, 2, 2))[1], torch.randn(1, 3, 20, 8, 10)),
    "another module": (nn.Conv3d(4, 2, 1), maps((1, 1, 1))[1], maps((1, 1, 1))[2]),
}


@pytest.mark.parametrize("why", UNDIVIDED)
def test_what_cannot_be_divided_is_joined_at_once(why):
    upsample, x, skip = UNDIVIDED[why]
    expected = torch.cat((upsample(x), skip), 1)
    found, rows = rows_of_parts(upsample, x, skip)
    assert torch.equal(found, expected)
    assert rows == [x.shape[2]]


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "forward", "of all"])
def test_what_looks_at_the_upsampling_sees_one_call(hook):
    upsample, x, skip = maps((2, 2, 2))
    seen, own = [], upsample.forward
    if hook == "forward":
        upsample.forward = lambda x: seen.append(True) or own(x)
    elif hook == "of all":
        handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.append(True))
    else:
        getattr(upsample, hook)(lambda *_: seen.append(True))
    with torch.no_grad():
        joined(upsample, x, skip)
    if hook == "of all":
        handle.remove()
    assert seen == [True]


@pytest.mark.parametrize("wrong", ["smaller", "more images", "fewer images", "no image"])
def test_maps_that_do_not_fit_are_refused(wrong):
    upsample, x, skip = maps((2, 2, 2))
    x = x.repeat(2, 1, 1, 1, 1) if wrong == "fewer images" else x
    other = {"smaller": skip[:, :, :-1], "more images": skip.repeat(2, 1, 1, 1, 1), "no image": skip[:0]}.get(
        wrong, skip
    )
    with torch.no_grad(), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        joined(upsample, x, other)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (1, 2, 2)},
        {"kernel_size": 2, "padding": (1, 0, 0)},
        {"kernel_size": 2, "output_padding": (1, 0, 0)},
        {"kernel_size": 2, "dilation": (2, 1, 1)},
    ],
    ids=str,
)
def test_upsamplings_to_another_size_are_refused(options):
    _, x, skip = maps((2, 2, 2))
    with torch.no_grad(), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        joined(nn.ConvTranspose3d(4, 2, stride=2, **options), x, skip)
