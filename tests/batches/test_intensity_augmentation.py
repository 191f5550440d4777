import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.batches.augmentation import filters, intensity, noise
from autoseg.batches.augmentation.parameters import SampleParameters
from autoseg.batches.augmentation.pipeline import apply_intensity, zero_outside
from autoseg.batches.augmentation.rows import apply_to_rows


def image(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def naive_gamma(x, gamma, invert):
    x = x.astype(np.float64) * (-1 if invert else 1)
    low, width = x.min(), x.max() - x.min()
    y = ((x - low) / width) ** gamma * width + low
    y = (y - y.mean()) / y.std(ddof=1) * x.std(ddof=1) + x.mean()
    return y * (-1 if invert else 1)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_equals_the_formula_and_keeps_the_statistics(gamma, invert):
    x = image(1, 4000) * 3 + 10
    expected = naive_gamma(x.numpy()[0], gamma, invert)
    (intensity.inverted_gamma_ if invert else intensity.gamma_)(x, torch.tensor([[gamma]]))
    assert np.allclose(x[0], expected, atol=2e-4)
    assert x.mean().item() == pytest.approx(expected.mean(), abs=1e-4)


def test_gamma_of_a_constant_image_changes_nothing():
    for operation in (intensity.gamma_, intensity.inverted_gamma_):
        x = torch.full((2, 50), 3.5)
        operation(x, torch.tensor([[0.8], [1.3]]))
        assert torch.allclose(x, torch.full((2, 50), 3.5))


def test_contrast_by_hand():
    x = torch.tensor([[0.0, 1.0, 2.0, 5.0]])  # mean 2
    stretched, shrunk = x.clone(), x.clone()
    intensity.scale_contrast_(stretched, torch.tensor([[1.25]]))
    assert torch.allclose(stretched, torch.tensor([[0.0, 0.75, 2.0, 5.0]]))  # -0.5 and 5.75 are clipped
    intensity.scale_contrast_(shrunk, torch.tensor([[0.75]]))
    assert torch.allclose(shrunk, torch.tensor([[0.5, 1.25, 2.0, 4.25]]))


def test_noise_is_standard_normal_and_independent():
    field = noise.normal_field(torch.tensor([1, 2, -(2**31), 77], dtype=torch.int32), 200_001)
    assert field.shape == (4, 200_001)
    for row in field.double():
        assert row.mean().item() == pytest.approx(0, abs=0.01)
        assert row.std().item() == pytest.approx(1, abs=0.01)
        assert (row**3).mean().item() == pytest.approx(0, abs=0.03)
        assert (row**4).mean().item() == pytest.approx(3, abs=0.1)
        for lag in (1, 2, 40, 1600, 100_000):
            assert abs(torch.corrcoef(torch.stack([row[lag:], row[:-lag]]))[0, 1]) < 0.015
    assert torch.corrcoef(field).fill_diagonal_(0).abs().max() < 0.01
    values = field[0].sort().values[::2000]
    expected = torch.special.ndtri((torch.arange(200_001)[::2000] + 0.5) / 200_001)
    assert (values - expected)[2:-2].abs().max() < 0.05


def test_noise_depends_on_the_key_alone():
    keys = torch.tensor([5, 6], dtype=torch.int32)
    both = noise.normal_field(keys, 1000)
    assert torch.equal(both[1], noise.normal_field(keys[1:], 1000)[0])


def test_blur_equals_scipy():
    x = image(12, 15, 9)
    sigmas = (0.55, 0.8, 0.95)
    expected = x.numpy().astype(np.float64)
    for axis, (sigma, radius) in enumerate(zip(sigmas, (1, 2, 3), strict=True)):
        expected = ndimage.gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=radius)
    filters.blur_(x, sigmas)
    assert np.allclose(x, expected, atol=1e-5)


def test_blur_of_a_very_short_axis():
    x = image(1, 2, 9)
    mean = x.mean(0).clone()
    filters.blur_(x, (0.9, 0.9, 0.9))
    assert torch.isfinite(x).all()
    constant = torch.full((1, 2, 3), 4.0)
    filters.blur_(constant, (0.9, 0.9, 0.9))
    assert torch.allclose(constant, torch.full((1, 2, 3), 4.0))
    assert mean.shape == (2, 9)


def test_low_resolution_of_a_line_by_hand():
    x = torch.arange(4.0).repeat(4, 1)  # nearest at factor 0.5 picks 1 and 3; linear: 1, 1.5, 2.5, 3
    filters.low_resolution_(x, 0.5, keep_first=False)
    assert torch.allclose(x, torch.tensor([1.0, 1.5, 2.5, 3.0]).repeat(4, 1))


def test_low_resolution_keeps_the_first_axis_of_flat_volumes():
    x = torch.arange(3.0).view(3, 1, 1).repeat(1, 12, 12)
    filters.low_resolution_(x, 0.5, keep_first=True)
    assert torch.allclose(x[:, 0, 0], torch.arange(3.0))


def test_rows_alone_and_together_agree(monkeypatch):
    parameters = [
        SampleParameters(
            flips=(False, False),
            noise_std=0.1,
            noise_keys=(3, -(2**31)),
            brightness=(1.1, 0.9),
            contrast=(0.8, 1.2),
            gamma=(0.7, 1.4),
            inverted_gamma=(1.2, 0.8),
            blur=((1, (0.6, 0.9)),),
            low_resolution=((0, 0.7),),
        ),
        SampleParameters(flips=(False, False)),
        SampleParameters(flips=(False, False), noise_std=0.05, noise_keys=(9, 2**31 - 1), gamma=(0.9, 1.1)),
    ]
    together, alone = image(3, 2, 20, 24), image(3, 2, 20, 24)
    untouched = together[1].clone()
    apply_intensity(together, parameters)
    monkeypatch.setattr("autoseg.batches.augmentation.rows._CPU_ELEMENTS", 1)
    apply_intensity(alone, parameters)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(together[1], untouched)
    assert not torch.allclose(together[0], image(3, 2, 20, 24)[0])


def test_order_is_brightness_contrast_gamma():
    x = image(1, 1, 30, 30)
    expected = x.clone().view(1, -1)
    intensity.scale_brightness_(expected, torch.tensor([[1.2]]))
    intensity.scale_contrast_(expected, torch.tensor([[1.2]]))
    intensity.inverted_gamma_(expected, torch.tensor([[0.8]]))
    intensity.gamma_(expected, torch.tensor([[1.3]]))
    apply_intensity(
        x,
        [
            SampleParameters(
                flips=(False, False), brightness=(1.2,), contrast=(1.2,), inverted_gamma=(0.8,), gamma=(1.3,)
            )
        ],
    )
    assert torch.allclose(x.view(1, -1), expected)


def test_no_rows_is_no_work():
    x = image(1, 1, 3, 3)
    apply_to_rows(x, [], [], lambda *_: pytest.fail("called"))


def test_only_masked_channels_are_zeroed_outside():
    x = torch.ones(1, 2, 2, 2)
    segmentation = torch.tensor([[[-1, 0], [1, -1]]], dtype=torch.int16)
    zero_outside(x, segmentation, (True, False))
    assert x[0, 0].tolist() == [[0, 1], [1, 0]]
    assert x[0, 1].tolist() == [[1, 1], [1, 1]]
