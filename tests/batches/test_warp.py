from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from autoseg.batches import StreamSettings
from autoseg.batches.augmentation import warp
from autoseg.batches.augmentation.pipeline import apply_warp
from autoseg.batches.augmentation.warp import interpolate, label_boxes, sampling, warp_labels
from autoseg.batches.batch import CutBatch, WarpSource
from autoseg.batches.geometry import rotation_matrix
from autoseg.batches.warp_boxes import warp_boxes

CPU = torch.device("cpu")


def grid_for(matrix, patch, box):
    """Return the sampling grid of torch.nn.functional.grid_sample, centre on centre."""
    offsets = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in patch], indexing="ij"), -1)
    where = offsets @ matrix.T + (np.asarray(box) - 1) / 2
    grid = (2 * where + 1) / np.asarray(box) - 1
    return torch.from_numpy(grid[..., ::-1].astype(np.float32).copy())[None]


def padded_box(volume, fill):
    """Return the volume in a box of one layer below and two above."""
    return np.pad(volume, [(1, 2)] * volume.ndim, constant_values=fill)


def random_matrix(axes, seed):
    random = np.random.default_rng(seed)
    angles = random.uniform(-0.6, 0.6, size=1 if axes == 2 else 3)
    flips = random.choice([-1.0, 1.0], size=axes)
    return rotation_matrix(angles) * random.uniform(0.7, 1.4) * flips


@pytest.mark.parametrize("patch", [(17, 20), (9, 12, 10)])
@pytest.mark.parametrize("seed", range(4))
def test_image_and_labels_equal_grid_sample(patch, seed):
    axes = len(patch)
    initial = tuple(size + 3 for size in patch)
    random = np.random.default_rng(seed)
    volume = random.normal(size=initial).astype(np.float32)
    labels = torch.from_numpy(random.integers(-1, 4, size=tuple(-(-s // 3) for s in initial)))
    labels = functional.interpolate(labels[None, None].float(), initial, mode="nearest")[0, 0].short()
    matrix = random_matrix(axes, seed)
    grid = grid_for(matrix, patch, initial)

    box = padded_box(volume, 0)
    centre = (np.asarray(initial) - 1) / 2 + 1
    places = sampling(matrix[None], centre[None], patch=patch, box=box.shape, device=CPU)
    out = torch.empty(1, int(np.prod(patch)))
    interpolate(torch.from_numpy(box).reshape(-1), places.index, places, out)
    expected = functional.grid_sample(torch.from_numpy(volume)[None, None], grid, align_corners=False)
    assert torch.allclose(out.view(patch), expected[0, 0], atol=1e-4)

    weights = [functional.grid_sample((labels == v).float()[None, None], grid, align_corners=False) for v in range(4)]
    stack = torch.cat(weights, 1)[0]
    stack = torch.cat([1 - stack.sum(0, keepdim=True), stack])  # outside counts for -1
    top = stack.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-3
    for kind in (torch.int8, torch.int16):
        source = torch.from_numpy(padded_box(labels.numpy(), -1)).to(kind)[None]
        found = warp_labels(label_boxes(source, axes=axes), places).view(patch)
        assert torch.equal(found[clear].long(), (stack.argmax(0) - 1)[clear])
    assert clear.float().mean() > 0.95
    assert (found == -1).any()


def test_a_quarter_turn_is_exact():
    volume = torch.arange(25.0).view(5, 5)
    box = torch.from_numpy(padded_box(volume.numpy(), 0))
    places = sampling(
        rotation_matrix([np.pi / 2])[None], np.array([[3.0, 3.0]]), patch=(5, 5), box=box.shape, device=CPU
    )
    out = torch.empty(1, 25)
    interpolate(box.reshape(-1), places.index, places, out)
    # out[o] = volume[R o]: R (1, 0) = (0, 1), so out[a, b] = volume[-b, a] about the centre
    assert torch.allclose(out.view(5, 5), torch.rot90(volume, -1, (0, 1)), atol=1e-4)


def test_scaling_above_one_shows_a_larger_area():
    labels = np.zeros((40, 40), dtype=np.int16)
    labels[10:30, 10:30] = 1
    box = torch.from_numpy(padded_box(labels, -1))[None]
    sizes = []
    for scale in (0.7, 1.0, 1.4):
        places = sampling(
            np.eye(2)[None] * scale, np.array([[20.5, 20.5]]), patch=(40, 40), box=box.shape[1:], device=CPU
        )
        sizes.append((warp_labels(label_boxes(box, axes=2), places) == 1).sum().item())
    assert sizes[0] > sizes[1] == 400 > sizes[2]


def test_equal_weights_go_to_the_nearest_corner():
    labels = torch.tensor([[0, 0, 2, 2]], dtype=torch.int16).repeat(4, 1)
    box = torch.from_numpy(padded_box(labels.numpy(), -1))[None]
    places = sampling(np.eye(2)[None], np.array([[2.5, 2.5]]), patch=(2, 2), box=box.shape[1:], device=CPU)
    assert warp_labels(label_boxes(box, axes=2), places).view(2, 2).tolist() == [[0, 2], [0, 2]]


@pytest.mark.parametrize("zoom", [0.5, 1.0])
@pytest.mark.parametrize("patch", [(12, 10, 14), (24, 20), (6, 24, 20)])
def test_boxes_hold_everything_that_is_looked_at(patch, zoom):
    """A warp of the small box equals a warp of the whole initial patch."""
    settings = StreamSettings(patch, 1)
    initial = settings.initial_patch_size
    kept = 1 if len(patch) == 3 and patch[0] == 6 else 0
    axes = len(patch) - kept
    random = np.random.default_rng(0)
    matrices = np.stack([random_matrix(axes, seed) for seed in range(6)]) * zoom
    boxes = warp_boxes(matrices, patch=patch[kept:], initial=initial[kept:])
    volume = random.normal(size=(len(matrices), 2, *initial)).astype(np.float32)
    labels = random.integers(-1, 3, size=(len(matrices), *initial)).astype(np.int16)

    def run(size, corners, centres):
        images = np.zeros((len(matrices), 2, *initial[:kept], *size), dtype=np.float32)
        maps = np.full((len(matrices), *initial[:kept], *size), -1, dtype=np.int16)
        for i, corner in enumerate(corners):
            low = [max(c, 0) for c in corner]
            high = [min(c + s, n) for c, s, n in zip(corner, size, initial[kept:], strict=True)]
            source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            target = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
            images[(i, ..., *target)] = volume[(i, ..., *source)]
            maps[(i, ..., *target)] = labels[(i, ..., *source)]
        count = len(matrices)
        places = tuple(reversed(range(count)))
        source = WarpSource(places, torch.from_numpy(images), torch.from_numpy(maps), None, matrices, centres)
        batch = CutBatch(
            image=torch.zeros(count, 2, *patch),
            segmentation=torch.zeros(count, *patch, dtype=torch.int16),
            cases=("x",) * count,
            warps=(lambda: source,),
        )
        apply_warp(batch)
        return batch

    whole = tuple(size + 3 for size in initial[kept:])
    everything = run(whole, [(-1,) * axes] * 6, np.tile((np.asarray(initial[kept:]) - 1) / 2 + 1, (6, 1)))
    small = run(boxes.size, boxes.corners, boxes.centres)
    assert (np.prod(boxes.size) < np.prod(whole)) == (zoom < 1)
    assert torch.allclose(small.image, everything.image, atol=1e-4)
    assert (small.segmentation == everything.segmentation).float().mean() > 0.999
    assert small.image.std() > 0.3


def random_sources(groups, box, matrices):
    """Return boxes of the samples in each group, every sample with its own, the labels with numbers beyond int8."""
    sources = []
    for group in groups:
        states = [np.random.default_rng(sample) for sample in group]
        images = np.stack([state.normal(size=(2, *box)) for state in states]).astype(np.float32)
        maps = np.stack([state.integers(-1, 200, size=box) for state in states]).astype(np.int16)
        previous = np.stack([state.integers(-1, 3, size=box) for state in states]).astype(np.int16)
        arrays = (torch.from_numpy(array) for array in (images, maps, previous))
        own = matrices[list(group)], np.full((len(group), matrices.shape[-1]), 6.5)
        sources.append(WarpSource(tuple(group), *arrays, *own))
    return sources


@pytest.mark.parametrize("patch", [(8, 9, 10), (20, 17), (4, 18, 20)])
def test_together_alone_and_slab_by_slab_agree(monkeypatch, patch):
    axes = 2 if patch[0] == 4 else len(patch)
    matrices = np.stack([random_matrix(axes, seed) for seed in range(4)])
    box = (*patch[: len(patch) - axes], *(size + 6 for size in patch[-axes:]))

    def run(*groups):
        batch = CutBatch(
            image=torch.zeros(4, 2, *patch),
            segmentation=torch.zeros(4, *patch, dtype=torch.int16),
            cases=("x",) * 4,
            previous=torch.zeros(4, *patch, dtype=torch.int16),
            warps=tuple(partial(lambda source: source, source) for source in random_sources(groups, box, matrices)),
        )
        apply_warp(batch)
        return batch

    together = run((3, 0, 2))
    found = [run((3,), (0,), (2,))]
    monkeypatch.setattr("autoseg.batches.augmentation.rows._CPU_SLAB", 3 * 2**axes * 3 * patch[-1])
    found += [run((3, 0, 2)), run((0, 2), (3,))]
    for other in found:
        assert torch.equal(together.image, other.image)
        assert torch.equal(together.segmentation, other.segmentation)
        assert torch.equal(together.previous, other.previous)
    assert (together.image[1] == 0).all()
    assert together.segmentation.max() > 127


@pytest.mark.parametrize("patch", [(30, 33), (12, 11, 14)])
def test_labels_are_the_same_with_the_vote_of_a_gpu(monkeypatch, patch):
    axes, box = len(patch), tuple(size + 3 for size in patch)
    source = torch.from_numpy(np.random.default_rng(0).integers(-1, 3, size=(2, *box)).astype(np.int16))
    source[:, : box[0] // 2] = 1
    matrices = np.stack([random_matrix(axes, seed) for seed in range(2)])
    places = sampling(matrices, np.full((2, axes), 6.0), patch=patch, box=box, device=CPU)
    some = warp_labels(label_boxes(source, axes=axes), places)
    monkeypatch.setattr(warp, "_decide_found", warp._decide_all)
    assert torch.equal(some, warp_labels(label_boxes(source, axes=axes), places))
    assert len(some.unique()) == 4
