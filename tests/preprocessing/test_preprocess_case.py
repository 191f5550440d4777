"""Whole cases against the naive pipeline, on real data."""

from functools import partial

import nibabel
import numpy as np
import pytest
from reference_pipeline import preprocess as naive

from autoseg.errors import UserError
from autoseg.preprocessing import preprocess_case


def load(path):
    """Arrays as (Z, Y, X) and spacing in the same order."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj).T, tuple(float(size) for size in image.header.get_zooms()[::-1])


def load_case(folder, case, channels=1):
    paths = [folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz" for channel in range(channels)]
    image = np.stack([load(path)[0] for path in paths]).astype(np.float32)
    label, spacing = load(folder / "labelsTr" / f"{case}.nii.gz")
    return image, label.astype(np.int16), spacing


def first_case(folder):
    return sorted((folder / "labelsTr").glob("*.nii.gz"))[0].name.removesuffix(".nii.gz")


def zscore(values):
    return (values - values.mean()) / max(values.std(), 1e-8)


def compare(image, label, spacing, plans, normalize, *, use_mask=False, atol=1e-3):
    configuration = plans.configurations["test"]
    result = preprocess_case(image, label, spacing, plans=plans, configuration=configuration)
    target = (spacing[0], *configuration.spacing) if configuration.dims == 2 else configuration.spacing
    expected, expected_label, box = naive(image, label.copy(), spacing, target, normalize, use_mask)
    assert result.data.shape == expected.shape
    assert np.abs(result.data - expected).max() < atol
    assert (result.label != expected_label).mean() < 1e-4
    assert result.properties.crop_box == tuple((part.start, part.stop) for part in box)
    assert result.properties.shape_resampled == result.label.shape
    return result


def test_hippocampus_to_another_spacing(shared, make_plans):
    folder = shared / "data" / "Dataset004_Hippocampus"
    result = compare(*load_case(folder, first_case(folder)), make_plans((1.3, 0.8, 0.9)), zscore)
    assert set(np.unique(result.label)) <= {-1, 0, 1, 2}


def test_hippocampus_at_its_own_spacing_is_only_normalised(shared, make_plans):
    folder = shared / "data" / "Dataset004_Hippocampus"
    image, label, spacing = load_case(folder, first_case(folder))
    result = compare(image, label, spacing, make_plans((1.0, 1.0, 1.0)), zscore)
    assert np.array_equal(np.maximum(result.label, 0), label)
    assert abs(float(result.data.mean())) < 1e-5


@pytest.mark.parametrize("spacing", [(10.0, 1.2, 1.2), (5.0, 2.0, 2.0), (1.25, 1.25)])
def test_cardiac_slices_are_treated_one_by_one(shared, make_plans, spacing):
    folder = shared / "data" / "Dataset112_CardiacACDC"
    image, label, own = load_case(folder, first_case(folder))
    assert own[0] > 3 * own[1]
    result = compare(image, label, own, make_plans(spacing), zscore)
    if len(spacing) == 2:
        assert result.data.shape[1] == image.shape[1]


def test_liver_ct(shared, make_plans):
    folder = shared / "data" / "Dataset109_LiverCT"
    image, label, spacing = load_case(folder, first_case(folder))
    part = (slice(20, 50), slice(60, 160), slice(50, 150))
    plans = make_plans((1.5, 2.0, 2.0), normalization=("ct",))
    values = plans.intensities[0]
    compare(
        image[(slice(None), *part)],
        label[part],
        spacing,
        plans,
        lambda x: (np.clip(x, values.percentile_00_5, values.percentile_99_5) - values.mean) / values.std,
    )


def test_brain_with_two_channels_and_masks(shared, make_plans):
    folder = shared / "data" / "Dataset110_BrainTumourMR"
    image, label, spacing = load_case(folder, first_case(folder), channels=2)
    part = (slice(40, 110), slice(None), slice(20, 130))
    plans = make_plans((1.5, 1.5, 1.5), normalization=("zscore",) * 2, use_mask=(True, True))
    result = compare(image[(slice(None), *part)], label[part], spacing, plans, zscore, use_mask=True, atol=2e-3)
    assert (result.label == -1).mean() > 0.1


def test_transposing_first_is_transposing_last(make_plans):
    random = np.random.default_rng(1)
    image = random.normal(size=(1, 12, 20, 9)).astype(np.float32)
    label = random.integers(0, 3, size=(12, 20, 9)).astype(np.int16)
    plans = make_plans((2.0, 1.0, 1.5), transpose=(2, 0, 1))
    run = partial(preprocess_case, plans=plans, configuration=plans.configurations["test"])
    result = run(image, label, (1.5, 1.0, 2.0))
    straight = make_plans((2.0, 1.0, 1.5))
    expected = preprocess_case(
        image.transpose(0, 3, 1, 2),
        label.transpose(2, 0, 1),
        (2.0, 1.5, 1.0),
        plans=straight,
        configuration=straight.configurations["test"],
    )
    assert np.array_equal(result.data, expected.data)
    assert np.array_equal(result.label, expected.label)
    assert result.properties == expected.properties


def test_without_label_map_the_image_is_the_same(make_plans):
    image = np.random.default_rng(0).normal(size=(1, 14, 14, 14)).astype(np.float32)
    image[:, :, :4, :5] = 0
    for use_mask in (True, False):
        plans = make_plans((1.2, 1.2, 1.2), use_mask=(use_mask,))
        run = partial(preprocess_case, plans=plans, configuration=plans.configurations["test"])
        without = run(image, None, (1, 1, 1))
        assert without.label is None
        assert np.array_equal(without.data, run(image, np.zeros((14, 14, 14), np.int16), (1, 1, 1)).data)


def test_natural_image_of_one_slice(make_plans):
    image = np.random.default_rng(0).integers(0, 255, size=(3, 1, 30, 40)).astype(np.float32)
    plans = make_plans((2.0, 2.0), normalization=("rgb_to_0_1",) * 3)
    result = preprocess_case(image, None, (999, 1, 1), plans=plans, configuration=plans.configurations["test"])
    assert result.data.shape == (3, 1, 15, 20)
    assert 0 <= result.data.min() <= result.data.max() <= 1
    assert all(low < high for low, high in result.properties.crop_box)


def test_a_spacing_that_would_ask_for_terabytes_is_refused(make_plans):
    image = np.random.default_rng(0).normal(size=(1, 30, 40, 36)).astype(np.float32)
    plans = make_plans((1.0, 1.0, 1.0))
    expected = r"has shape \(300000, 400000, 36\) and needs 16093.3 GiB"
    with pytest.raises(UserError, match=expected):
        preprocess_case(image, None, (10_000.0, 10_000.0, 1.0), plans=plans, configuration=plans.configuration("test"))
