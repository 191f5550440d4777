import numpy as np
import pytest
import torch
from batchgenerators.transforms.noise_transforms import GaussianNoiseTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform

from autoseg.batches import Batch, BatchgeneratorsTransform, PatchStream, StreamSettings


@pytest.fixture
def batch():
    image = torch.arange(2 * 2 * 4 * 5 * 6, dtype=torch.float32).view(2, 2, 4, 5, 6)
    return Batch(image, image[:, 0].short(), ("a", "b"), previous=image[:, 1].short(), step=3)


def test_mirror_moves_image_and_labels_together(batch):
    transform = BatchgeneratorsTransform(MirrorTransform(axes=(0, 1, 2)), seed=0)
    result = transform(batch)
    assert not torch.equal(result.image, batch.image)
    assert torch.equal(result.image[:, 0].short(), result.segmentation)
    assert torch.equal(result.image[:, 1].short(), result.previous)
    assert result.image.sum() == batch.image.sum()
    assert (result.cases, result.step) == (("a", "b"), 3)


def test_noise_depends_on_seed_name_and_step(batch):
    from dataclasses import replace

    transform = BatchgeneratorsTransform(GaussianNoiseTransform((0.5, 1.0)), seed=1)
    before = batch.image.clone()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = transform(batch).image, transform(batch).image
    assert torch.equal(first, again)
    assert torch.equal(batch.image, before)
    assert first.dtype == torch.float32
    assert not torch.equal(first, batch.image)
    assert not torch.equal(first, transform(replace(batch, step=4)).image)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_transforms_of_the_second_generation(batch):
    class Shift:
        def get_parameters(self, **data):
            return {}

        def __call__(self, *, image, segmentation):
            return {"image": image + torch.rand(1), "segmentation": segmentation + int(torch.randint(1, 5, (1,)))}

    result = BatchgeneratorsTransform(Shift(), seed=0)(batch)
    difference = (result.image - batch.image).flatten(1)
    assert (difference.amax(1) - difference.amin(1) < 1e-3).all()
    assert abs(difference[0, 0] - difference[1, 0]) > 1e-3
    assert ((result.segmentation - batch.segmentation).flatten(1).unique(dim=1).shape) == (2, 1)


def test_in_a_stream(memory_store, labels):
    stream = PatchStream(
        memory_store,
        memory_store.cases,
        labels,
        StreamSettings((10, 10, 10), 2, augmentation="none"),
        seed=1,
        name="t",
        after=(BatchgeneratorsTransform(GaussianNoiseTransform((1.0, 1.0)), seed=1),),
    )
    assert torch.equal(stream.batch(2).image, stream.batch(2).image)
    assert not torch.equal(stream.batch(2).image, stream.cut(2).image)
