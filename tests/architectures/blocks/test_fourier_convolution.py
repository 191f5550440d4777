"""Fourier units: transforms, reach, shifts, parts; published sizes."""

import pytest
import torch
from autoseg.architectures.blocks.fourier_convolution import (
    FourierConvolution,
    FourierUnit,
    SpectralTransform,
    cut_parts,
    repeat_parts,
)
from network_specs import count


def linear_unit(width=2, sizes=(8, 6), weight=None):
    """A unit without norm and ReLU."""
    torch.manual_seed(0)
    unit = FourierUnit(len(sizes), width, range(len(sizes)), "batch")
    unit.norm, unit.act = torch.nn.Identity(), torch.nn.Identity()
    matrix = torch.eye(2 * width) if weight is None else torch.diag(weight)
    unit.conv.weight.data = matrix.reshape(unit.conv.weight.shape)
    return unit


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_published_parameter_counts():
    assert count(FourierUnit(2, 16, (0, 1), "batch")) == 1_088
    assert count(SpectralTransform(2, 16, 32, (0, 1), "batch")) == 2_976


@pytest.mark.parametrize("sizes", [(8, 6), (7, 5), (4, 6, 5)])
def test_there_and_back(sizes):
    unit, x = linear_unit(2, sizes), draw(2, 2, *sizes)
    torch.testing.assert_close(unit(x), x, atol=1e-5, rtol=1e-5)


def test_the_transform_keeps_the_energy():
    unit, x = linear_unit(1, (8, 6)), draw(1, 1, 8, 6)
    spectrum = unit.spectrum(x)
    twice = torch.tensor([1.0, 2, 2, 1])  # inner columns stand for their conjugates too
    torch.testing.assert_close((spectrum.square() * twice).sum(), x.square().sum())


def test_real_and_imaginary_parts_lie_side_by_side():
    unit, x = linear_unit(2, (4, 4)), draw(1, 2, 4, 4)
    wanted = torch.fft.rfft2(x, norm="ortho")
    spectrum = unit.spectrum(x)
    for channel in range(2):
        torch.testing.assert_close(spectrum[:, 2 * channel], wanted[:, channel].real)
        torch.testing.assert_close(spectrum[:, 2 * channel + 1], wanted[:, channel].imag)


def test_equal_weights_commute_with_circular_shifts():
    unit, x = linear_unit(2, weight=torch.tensor([2.0, 2, 0.5, 0.5])), draw(1, 2, 8, 6)
    shifted = x.roll((3, 2), (2, 3))
    torch.testing.assert_close(unit(shifted), unit(x).roll((3, 2), (2, 3)), atol=1e-5, rtol=1e-5)
    unit.act = torch.nn.ReLU()
    assert (unit(shifted) - unit(x).roll((3, 2), (2, 3))).abs().max() > 0.01


def test_only_the_given_axes_are_transformed():
    unit = FourierUnit(3, 2, (1, 2), "batch").eval()
    x = draw(1, 2, 3, 4, 4)
    other = x.clone()
    other[0, 0, 1, 2, 2] += 1
    changed = (unit(other) - unit(x)).abs().amax((0, 1)) > 1e-7
    assert changed.any((1, 2)).tolist() == [False, True, False]
    assert changed[1].all()


def test_a_pixel_reaches_every_other():
    torch.manual_seed(0)
    x = draw(1, 4, 8, 6).double()
    other = x.clone()
    other[0, :, 3, 2] += 1
    convolution = torch.nn.Conv2d(4, 4, 1).double()
    transform = SpectralTransform(2, 4, 16, (0, 1), "batch").double().eval()
    reached = [((module(other) - module(x)).abs().amax((0, 1)) > 1e-9).sum() for module in (convolution, transform)]
    assert reached == [1, 48]


def test_parts_by_hand():
    x = torch.arange(8.0).reshape(1, 1, 2, 4)  # 0 1 2 3 / 4 5 6 7
    parts = cut_parts(x, (0, 1))
    assert parts.flatten(2).tolist() == [[[0, 1], [4, 5], [2, 3], [6, 7]]]  # row halves first, then column halves
    assert repeat_parts(parts[:, :1], (0, 1), (2, 4)).tolist() == [[[[0, 1, 0, 1]] * 2]]


def test_odd_axes_are_padded():
    parts = cut_parts(torch.ones(1, 1, 3, 2), (0,))
    assert parts.flatten(2).tolist() == [[[1, 1, 1, 1], [1, 1, 0, 0]]]
    assert repeat_parts(parts, (0,), (3, 2)).shape == (1, 2, 3, 2)


def test_the_spectral_transform_by_definition():
    torch.manual_seed(0)
    transform, x = SpectralTransform(2, 4, 16, (0, 1), "batch").eval(), draw(2, 4, 8, 6)
    for norm in (module for module in transform.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.bias)
    conv, norm, _ = transform.enter
    u = torch.relu(norm(conv(x)))
    top, bottom = u[:, :2, :4], u[:, :2, 4:]  # a quarter of the eight channels
    quarters = [half[..., side] for side in (slice(0, 3), slice(3, 6)) for half in (top, bottom)]
    parts = transform.parts(torch.cat(quarters, 1)).repeat(1, 1, 2, 2)
    torch.testing.assert_close(transform(x), transform.out(u + transform.whole(u) + parts))
    unit, u = transform.whole, u.double()
    pairs = torch.view_as_real(torch.fft.rfft2(u, norm="ortho")).permute(0, 1, 4, 2, 3).flatten(1, 2).float()
    pairs = torch.relu(unit.norm(unit.conv(pairs))).unflatten(1, (8, 2))
    wanted = torch.fft.irfft2(torch.complex(pairs[:, :, 0], pairs[:, :, 1]), s=(8, 6), norm="ortho")
    torch.testing.assert_close(unit(u.float()), wanted)


def test_local_units_need_channels_to_cut():
    assert SpectralTransform(2, 4, 8, (0, 1), "batch").parts is not None
    assert SpectralTransform(2, 4, 4, (0, 1), "batch").parts is None
    assert SpectralTransform(3, 4, 8, (0, 1, 2), "batch").parts is None


@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 4), (0, 0), (8, 8), (4, 0), (4, 8)])
def test_absent_parts(before, after):
    layer = FourierConvolution(2, 8, 8, before, after, axes=(0, 1), norm="batch").eval()
    local = draw(1, 8 - before, 4, 4) if before < 8 else None
    everywhere = draw(1, before, 4, 4) if before else None
    outputs = layer(local, everywhere)
    assert [0 if part is None else part.shape[1] for part in outputs] == [8 - after, after]
    assert (layer.global_to_global is not None) == bool(before and after)


def test_the_sum_of_paths():
    torch.manual_seed(0)
    layer = FourierConvolution(2, 8, 8, 4, 4, axes=(0, 1), norm="batch").eval()
    for norm in (layer.local_norm, layer.global_norm):
        torch.nn.init.normal_(norm.bias)
    a, b = draw(1, 4, 4, 4), draw(1, 4, 4, 4) + 1
    local, everywhere = layer(a, b)
    torch.testing.assert_close(local, layer.local_norm(layer.local_to_local(a) + layer.global_to_local(b)))
    wanted = layer.global_norm(layer.local_to_global(a) + layer.global_to_global(b))
    torch.testing.assert_close(everywhere, wanted)
    assert (local < 0).any()  # no activation follows
    assert (everywhere < 0).any()
