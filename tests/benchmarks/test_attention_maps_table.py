"""The scores of attention maps by hand, and the choice of head, direction and threshold on the training images."""

import json

import attention_maps as script
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from autoseg.architectures.blocks.attention_maps import ViTSize, random_vit

from autoseg.raw import open_dataset


def test_area_and_overlap_by_hand():
    background, objects = np.array([2, 1, 1]), np.array([0, 1, 3])
    # of 16 pairs the object is above in 1 * 2 + 3 * 3 = 11, level in 1 * 1 + 3 * 1 = 4
    assert script.area(background, objects) == pytest.approx((11 + 2) / 16)
    assert script.overlaps(background, objects) == pytest.approx([4 / 8, 4 / 6, 3 / 5])
    turned = script.turn(np.stack([background, objects]), True)
    assert script.area(*turned) == pytest.approx(3 / 16)


@pytest.fixture
def dataset(tmp_path):
    """Pictures in which objects are dark, two to choose on and one to score."""
    folder, random = tmp_path / "Dataset900_Dark", np.random.default_rng(0)
    for part, case in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        label = random.integers(0, 2, (16, 24), dtype=np.uint8)
        image = np.where(label > 0, 10, 200).astype(np.uint8)
        for kind, array, name in (("images", image, f"{case}_0000.png"), ("labels", label, f"{case}.png")):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{kind}{part}" / name))
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": 2}))
    return folder


def test_the_candidate_that_tells_is_chosen_and_inverted(dataset):
    data = open_dataset(dataset)

    def candidates(image):
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
        return torch.cat([noise, script.brightness(image)], 1)

    found = script.score(data, candidates)
    assert (found.auc, found.iou) == (1.0, 1.0)
    assert found.all_auc[1] == 0.0
    assert 0.3 < found.all_auc[0] < 0.7


def test_random_transformers_differ_by_seed_alone():
    like = random_vit(ViTSize(width=64, depth=1, heads=1, patch=4, side=3))
    first, again, other = (script.drawn(like, seed).patch_embed.proj.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_that_is_there_is_scored(dataset, tmp_path, capsys):
    from safetensors.torch import save_file

    run = tmp_path / "dino__auto__2d" / "all"
    run.mkdir(parents=True)
    vit = random_vit(ViTSize(width=64, depth=1, heads=1, patch=4, side=3), saved=True)
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, run / "weights.safetensors")
    script.main([str(dataset), "--workspace", str(tmp_path), "--run", str(run), "--random", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "intensity of the pixel | 1.000 | 1.000 | 0.000 to 0.000 |" in lines[-1]
    assert "2 random transformers" in lines[3]
