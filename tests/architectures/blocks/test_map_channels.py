"""Data sets with attention maps as channels: what is written, what the engine makes of it."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from autoseg.architectures.blocks import map_channels
from autoseg.architectures.blocks.attention_maps import ViTSize, attention_maps, random_vit

from autoseg.planning.rules import normalization
from autoseg.raw import check, list_prediction_cases, open_dataset, read_image, read_label

TINY = ViTSize(width=64, depth=2, heads=1, patch=4, side=3)


@pytest.fixture
def vit_file(tmp_path):
    torch.save(random_vit(TINY, saved=True).state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def write(path, array, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def dataset(tmp_path):
    """Two pictures, one of them to be predicted."""
    folder, random = tmp_path / "Dataset900_Tiny", np.random.default_rng(0)
    for part, case in (("imagesTr", "a"), ("imagesTr", "b"), ("imagesTs", "c")):
        write(folder / part / f"{case}_0000.png", random.integers(0, 255, (16, 20), dtype=np.uint8), (1, 1))
        if part == "imagesTr":
            write(folder / "labelsTr" / f"{case}.png", random.integers(0, 2, (16, 20), dtype=np.uint8), (1, 1))
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": 2}))
    return folder


def test_a_data_set_gets_its_maps(dataset, vit_file, tmp_path):
    output = tmp_path / "Dataset901_Maps"
    map_channels.main([str(dataset), str(output), "--vit-file", str(vit_file)])
    assert check(output).ok
    before, after = open_dataset(dataset), open_dataset(output)
    assert after.channel_names == ("grey", "attention_map")
    assert normalization(after.channel_names, 1.0) == (("zscore", "none"), (False, False))
    assert [case.id for case in after.cases] == ["a", "b"]
    assert [case.id for case in after.test] == ["c"]
    for old, new in zip((*before.cases, *before.test), (*after.cases, *after.test), strict=True):
        plain, rich = read_image(old.images, channels=1), read_image(new.images, channels=2)
        assert np.array_equal(rich.data[:1], plain.data)
        wanted = attention_maps(random_vit(TINY), torch.from_numpy(plain.data[:, 0])[None])[0]
        assert np.allclose(rich.data[1:, 0], wanted, atol=1e-6)
        assert rich.geometry.size == plain.geometry.size
        if old.label:
            assert np.array_equal(read_label(new.label)[0], read_label(old.label)[0])


def test_images_to_predict_get_their_maps(dataset, vit_file, tmp_path):
    output = tmp_path / "images"
    map_channels.main([str(dataset), str(output), "--vit-file", str(vit_file), "--images", str(dataset / "imagesTs")])
    cases = list_prediction_cases(output, channels=2, file_ending=".nii.gz")
    assert [case.id for case in cases] == ["c"]
    assert read_image(cases[0].images, channels=2).data.shape == (2, 1, 16, 20)


def test_slices_lie_across_the_coarsest_axis():
    vit, data = random_vit(TINY), np.random.default_rng(0).normal(size=(1, 12, 3, 16)).astype(np.float32)
    maps = map_channels.volume_maps(vit, data, (1.0, 5.0, 1.0))
    assert maps.shape == (1, 12, 3, 16)
    for number in range(3):
        wanted = attention_maps(vit, torch.from_numpy(data[:, :, number])[None])[0]
        assert np.allclose(maps[:, :, number], wanted, atol=1e-6)


def test_a_full_folder_and_a_wrong_file_are_refused(dataset, vit_file, tmp_path, capsys):
    for arguments, message in (
        ([str(dataset), str(dataset), "--vit-file", str(vit_file)], "not empty"),
        ([str(dataset), str(tmp_path / "new"), "--vit-file", str(tmp_path / "none.pth")], "does not exist"),
    ):
        with pytest.raises(SystemExit, match="2"):
            map_channels.main(arguments)
        assert message in capsys.readouterr().err
