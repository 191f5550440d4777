import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.plans import ChannelIntensities
from autoseg.preprocessing import normalise

CT = ChannelIntensities(mean=10, median=10, std=5, min=-9, max=90, percentile_00_5=0, percentile_99_5=20)


def run(values, scheme, inside=None, use_mask=False, intensities=CT):
    image = np.asarray(values, dtype=np.float32).reshape(1, 1, 1, -1)
    mask = None if inside is None else np.asarray(inside).reshape(1, 1, -1)
    result = normalise(image, mask, schemes=(scheme,), use_mask=(use_mask,), intensities=(intensities,))
    assert result.dtype == np.float32
    return result.ravel().tolist()


def test_zscore_by_hand():
    assert run([1, 3], "zscore") == [-1, 1]
    assert run([4, 4, 4], "zscore") == [0, 0, 0]


def test_zscore_inside_the_mask_leaves_the_rest():
    assert run([0, 1, 3, 7], "zscore", [False, True, True, False], use_mask=True) == [0, -1, 1, 7]
    assert run([0, 1, 3, 0], "zscore", [False, True, True, False]) == pytest.approx(
        (np.asarray([0, 1, 3, 0]) - 1) / np.std([0, 1, 3, 0])
    )
    assert run([0, 0], "zscore", [False, False], use_mask=True) == [0, 0]


def test_ct_clips_then_uses_the_pooled_statistics():
    assert run([-1000, 0, 15, 500], "ct") == [-2, -2, 1, 2]


def test_ct_with_mask_is_not_masked():
    assert run([-1000, 15], "ct", [False, True], use_mask=True) == [-2, 1]


def test_the_other_schemes():
    assert run([-5, 7.5], "none") == [-5, 7.5]
    assert run([-5, 0, 15], "rescale_to_0_1") == [0, 0.25, 1]
    assert run([3, 3], "rescale_to_0_1") == [0, 0]
    assert run([0, 255], "rgb_to_0_1") == [0, 1]


def test_the_input_is_not_changed_and_integers_are_taken():
    image = np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2)
    normalise(image, None, schemes=("zscore",), use_mask=(False,), intensities=(CT,))
    assert image.ravel().tolist() == list(range(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(UserError, match=r"channel 0 holds 1 voxel\(s\) that are not finite"):
        run([1, bad], "zscore")


def test_a_missing_channel_is_told():
    with pytest.raises(UserError, match=r"1 channel\(s\), the plans know 2"):
        normalise(np.zeros((1, 1, 1, 1)), None, schemes=("none",) * 2, use_mask=(False,) * 2, intensities=(CT,) * 2)
