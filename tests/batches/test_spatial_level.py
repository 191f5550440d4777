from autoseg.batches import StreamSettings
from autoseg.batches.augmentation.parameters import SampleParameters, draw_parameters
from autoseg.randomness import generator


def drawn(sample):
    random = generator(0, "spatial", 0, sample)
    return draw_parameters(random, patch_size=(16, 16, 16), channels=2, mirror_axes=(0, 2), level="spatial")


def test_spatial_warps_and_mirrors_and_leaves_intensities_alone():
    samples = [drawn(sample) for sample in range(100)]
    assert 20 < sum(sample.warp is not None for sample in samples) < 52  # 0.36 of them
    assert {sample.flips[1] for sample in samples} == {False}
    assert {sample.flips[0] for sample in samples} == {False, True}
    for sample in samples:
        assert SampleParameters(flips=sample.flips, warp=sample.warp) == sample


def test_what_is_warped_starts_from_a_larger_patch():
    settings = StreamSettings(patch_size=(16, 16, 16), batch_size=2, augmentation="spatial")
    assert min(settings.initial_patch_size) > 16
