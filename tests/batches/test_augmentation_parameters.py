import numpy as np
import pytest

from autoseg.batches.augmentation import SampleParameters, draw_parameters
from autoseg.randomness import generator

N = 6000


@pytest.fixture(scope="module")
def many():
    return [
        draw_parameters(generator(3, "x", step), patch_size=(40, 56, 40), channels=3, mirror_axes=(0, 2), level="full")
        for step in range(N)
    ]


def share(values):
    return np.mean([bool(value) for value in values])


def test_probabilities_of_the_card(many):
    def near(probability):
        return pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / N))

    assert share(p.warp is not None for p in many) == near(1 - 0.8 * 0.8)
    warped = [p.warp for p in many if p.warp is not None]
    scaled = [abs(np.linalg.det(w)) ** (1 / 3) for w in warped]
    rotated = [not np.allclose(w / s, np.eye(3)) for w, s in zip(warped, scaled, strict=True)]
    assert share(rotated) * len(warped) / N == near(0.2)
    assert share(abs(s - 1) > 1e-9 for s in scaled) * len(warped) / N == near(0.2)
    assert share(p.noise_keys for p in many) == near(0.1)
    assert share(p.brightness for p in many) == near(0.15)
    assert share(p.contrast for p in many) == near(0.15)
    assert share(p.inverted_gamma for p in many) == near(0.1)
    assert share(p.gamma for p in many) == near(0.3)
    assert np.mean([len(p.blur) / 3 for p in many]) == pytest.approx(0.1, abs=0.015)
    assert np.mean([len(p.low_resolution) / 3 for p in many]) == pytest.approx(0.125, abs=0.015)
    assert share(p.flips[0] for p in many) == near(0.5)
    assert share(p.flips[1] for p in many) == 0


def test_ranges_of_the_card(many):
    def limits(values):
        values = list(values)
        return min(values), max(values)

    def close(values, low, high):
        found = limits(values)
        width = (high - low) * 0.02
        assert low <= found[0] < low + width
        assert high - width < found[1] <= high

    close((p.noise_std for p in many if p.noise_keys), 0, 0.1)
    close((s for p in many for _, sigmas in p.blur for s in sigmas), 0.5, 1)
    close((f for p in many for f in p.brightness), 0.75, 1.25)
    close((f for p in many for f in p.contrast), 0.75, 1.25)
    close((f for p in many for _, f in p.low_resolution), 0.5, 1)
    close((g for p in many for g in p.gamma), 0.7, 1.5)
    scales = [abs(np.linalg.det(p.warp)) ** (1 / 3) for p in many if p.warp is not None]
    close(scales, 0.7, 1.4)
    gammas = [g for p in many for g in p.gamma + p.inverted_gamma]
    assert np.mean([g < 1 for g in gammas]) == pytest.approx(0.5, abs=0.02)  # not in proportion to the widths


def test_parameters_per_channel_differ(many):
    sets = [p.gamma for p in many if p.gamma]
    assert all(len(values) == 3 for values in sets)
    assert sum(len(set(values)) == 3 for values in sets) == len(sets)


def test_flat_volumes_are_turned_in_plane():
    drawn = [
        draw_parameters(generator(1, "x", s), patch_size=(10, 64, 64), channels=1, mirror_axes=()) for s in range(300)
    ]
    warps = [p.warp for p in drawn if p.warp is not None]
    assert {w.shape for w in warps} == {(2, 2)}
    angles = [np.arctan2(w[1, 0], w[0, 0]) for w in warps]
    assert min(angles) < -2.5
    assert max(angles) > 2.5


def test_light_leaves_out_the_costly_ones_and_none_everything():
    light = [
        draw_parameters(generator(1, "x", s), patch_size=(8, 8), channels=1, mirror_axes=(0, 1), level="light")
        for s in range(300)
    ]
    assert not any(p.warp is not None or p.blur or p.low_resolution for p in light)
    assert any(p.gamma for p in light)
    assert any(p.noise_keys for p in light)
    assert any(any(p.flips) for p in light)
    none = draw_parameters(generator(1, "x"), patch_size=(8, 8), channels=1, mirror_axes=(0, 1), level="none")
    assert none == SampleParameters(flips=(False, False))
