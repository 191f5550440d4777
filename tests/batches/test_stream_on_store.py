"""Streams on a real store: hippocampus cases of the shared data."""

import nibabel
import numpy as np
import pytest
import torch

from autoseg.batches import PatchStream, Prefetcher, StreamSettings
from autoseg.store import CaseProperties, CaseStore, Preprocessed

CASES = 3


@pytest.fixture(scope="module")
def store(shared, tmp_path_factory):
    folder = shared / "data" / "Dataset004_Hippocampus"
    store = CaseStore(tmp_path_factory.mktemp("store"))
    for path in sorted((folder / "labelsTr").glob("*.nii.gz"))[:CASES]:
        case = path.name.removesuffix(".nii.gz")
        label = np.asarray(nibabel.load(path).dataobj).astype(np.int16).transpose(2, 1, 0)
        image = nibabel.load(folder / "imagesTr" / f"{case}_0000.nii.gz").get_fdata(dtype=np.float32).transpose(2, 1, 0)
        image = (image - image.mean()) / image.std()
        properties = CaseProperties(
            spacing=(1.0, 1.0, 1.0),
            shape_before_crop=label.shape,
            crop_box=tuple((0, size) for size in label.shape),
            shape_after_crop=label.shape,
            shape_resampled=label.shape,
        )
        locations = {value: np.argwhere(label == value).astype(np.int32) for value in (1, 2)}
        store.write(case, Preprocessed(image[None], label, properties), locations)
        store.add_previous_stage(case, label, "3d_lowres")
    return store


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("patch", [(40, 56, 40), (56, 40)])
def test_batches_of_real_cases(store, labels, patch, cache):
    opened = CaseStore(store.folder, cache=cache)
    settings = StreamSettings(patch, 4)
    stream = PatchStream(opened, opened.cases, labels, settings, seed=1, name="train", previous_stage="3d_lowres")
    with Prefetcher(stream, start=0, device="cpu", threads=2, depth=3) as prefetcher:
        batches = [prefetcher.next() for _ in range(8)]
    images = torch.stack([batch.image for batch in batches])
    segmentations = torch.stack([batch.segmentation for batch in batches])
    assert images.shape == (8, 4, 1, *patch)
    assert torch.isfinite(images).all()
    assert 0.5 < images.std() < 1.5
    assert segmentations.unique().tolist() == [0, 1, 2]
    assert (segmentations[:, 3] > 0).flatten(1).any(1).all()  # the last of four is centred on foreground
    again = stream.batch(5)
    assert torch.equal(again.image, batches[5].image)
    assert torch.equal(again.previous, batches[5].previous)
    assert not torch.equal(again.previous, torch.zeros_like(again.previous))


def test_the_number_of_threads_does_not_change_a_bit(store, labels):
    stream = PatchStream(store, store.cases, labels, StreamSettings((40, 56, 40), 4), seed=1, name="train")
    before, images = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        images.append([stream.batch(step).image for step in range(10)])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*images, strict=True))
