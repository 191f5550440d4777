"""Data sets with attention maps as channels: what is written, what the engine makes of it."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from autoseg.architectures.blocks import map_channels
from autoseg.architectures.blocks.attention_maps import SCALING, ViTSize, attention_maps, random_vit
from planning_factory import make_dataset, make_fingerprint

from autoseg.model_folder import Model, checksums
from autoseg.planning.resources import Resources
from autoseg.planning.rules import normalization
from autoseg.plugins import load
from autoseg.raw import check, describe_images, list_prediction_cases, make_splits, open_dataset, read_image, read_label
from autoseg.storage import file_hash

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
    output, with_maps = tmp_path / "images", tmp_path / "Dataset901_Maps"
    map_channels.main([str(dataset), str(with_maps), "--vit-file", str(vit_file)])
    images = ["--images", str(dataset / "imagesTs"), "--for", str(with_maps)]
    map_channels.main([str(dataset), str(output), "--vit-file", str(vit_file), *images])
    cases = list_prediction_cases(output, channels=2, file_ending=".nii.gz")
    assert [case.id for case in cases] == ["c"]
    assert read_image(cases[0].images, channels=2).data.shape == (2, 1, 16, 20)


def test_what_is_known_of_cases_goes_along(dataset, vit_file, tmp_path):
    """Else patients would leak from one fold into another."""
    write(dataset / "labelsTs" / "c.png", np.ones((16, 20), dtype=np.uint8), (1, 1))
    write(dataset / "imagesUn" / "d_0000.png", np.ones((16, 20), dtype=np.uint8), (1, 1))
    rows = ["case,patient,split,annotated,site", "a,p1,val,cell,x", "b,p1,train,,y", "c,p2,,,z", "d,p1,,,"]
    (dataset / "cases.csv").write_text("\n".join(rows))
    (dataset / "texts.json").write_text(json.dumps({"a": {"prompt": "bright\ncells", "age": 7}, "b": "dark"}))
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    output = tmp_path / "Dataset901_Maps"
    map_channels.main([str(dataset), str(output), "--vit-file", str(vit_file)])
    assert check(output).ok
    before, after = open_dataset(dataset), open_dataset(output)
    for part in ("cases", "unlabelled", "test"):
        assert [known(case) for case in getattr(after, part)] == [known(case) for case in getattr(before, part)]
    assert known(after.cases[0])[1:4] == ("p1", "val", ("cell",))
    assert after.cases[0].attributes["age"] == 7
    assert (read_label(after.test[0].label)[0] == 1).all()
    assert read_image(after.unlabelled[0].images, channels=2).data.shape == (2, 1, 16, 20)
    assert make_splits(after) == make_splits(before) == [{"train": ["a"], "val": ["b"]}]


def known(case):
    """Return all of a case but its files."""
    return case.id, case.group, case.split, case.annotated, case.attributes, case.text


def test_a_list_of_another_place_and_splits_of_the_workspace(dataset, vit_file, tmp_path):
    folder = dataset.rename(tmp_path / "elsewhere")
    cases = [
        {"case": name, "images": [f"{folder}/imagesTr/{file}_0000.png"], "label": f"{folder}/labelsTr/{file}.png"}
        | {"group": group, "attributes": {"sizes": [1, 2]}}
        for name, file, group in (("a", "a", "p1"), ("b", "b", "p1"), ("e", "a", "p2"))
    ]
    description = json.loads((folder / "dataset.json").read_text()) | {"cases": cases, "numTraining": 3}
    (tmp_path / "raw" / "Dataset900_List").mkdir(parents=True)
    (tmp_path / "raw" / "Dataset900_List" / "dataset.json").write_text(json.dumps(description))
    folds = [{"train": ["a", "b"], "val": ["e"]}]
    (tmp_path / "preprocessed" / "Dataset900_List").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset900_List" / "splits_final.json").write_text(json.dumps(folds))
    output = tmp_path / "Dataset901_Maps"
    map_channels.main(["900", str(output), "--vit-file", str(vit_file), "--workspace", str(tmp_path)])
    after = open_dataset(output)
    assert [known(case) for case in after.cases] == [known(case) for case in open_dataset("900", tmp_path).cases]
    assert [case.group for case in after.cases] == ["p1", "p1", "p2"]
    assert make_splits(after) == folds


def planned(dataset, **options):
    """Return diamant's options as planned for a data set."""
    data = open_dataset(dataset)
    return load("architecture", "diamant").options_for(options, data.channel_names, data.description)


def test_images_need_the_vit_of_their_data_set_or_model(dataset, vit_file, tmp_path, capsys):
    with_maps, other = tmp_path / "Dataset901_Maps", tmp_path / "other.pth"
    map_channels.main([str(dataset), str(with_maps), "--vit-file", str(vit_file)])
    record = json.loads((with_maps / "dataset.json").read_text())["attention_maps"]
    assert record == {"vit_hash": file_hash(vit_file), "patch": 4, "heads": 1, "scaling": SCALING}
    options = planned(with_maps)
    assert options == {"maps": 1, "maps_vit": record, "channel_names": ["grey", "attention_map"]}
    plans = example_plans(with_options=options)
    network = plans.configurations["2d"].network
    assert load("architecture", "diamant").adapt_spec(network).options["maps_vit"] == record
    model = write_model(tmp_path / "model", plans)
    torch.save({name: value + 1 for name, value in torch.load(vit_file).items()}, other)
    for number, reference in enumerate((with_maps, model)):
        images = ["--images", str(dataset / "imagesTs"), "--for", str(reference)]
        output = tmp_path / f"images{number}"
        with pytest.raises(SystemExit, match="2"):
            map_channels.main([str(dataset), str(output), "--vit-file", str(other), *images])
        error = capsys.readouterr().err
        assert "its vit_hash differ" in error
        assert record["vit_hash"] in error
        assert not output.exists()
        map_channels.main([str(dataset), str(output), "--vit-file", str(vit_file), *images])
        assert describe_images(output)["attention_maps"] == record  # which prediction asks for
    for extra, message in (
        (["--for", str(dataset)], "nothing tells which ViT"),
        ([], "--images and --for go together"),
    ):
        with pytest.raises(SystemExit, match="2"):
            map_channels.main([*map(str, (dataset, output, "--vit-file", vit_file)), *images[:2], *extra])
        assert message in capsys.readouterr().err


def example_plans(*, with_options):
    """Return plans whose 2d network has these options."""
    planner = load("planner", "nnunet")(wanted=["2d"], architecture="plain_unet")
    measured = make_fingerprint([(1, 1, 1)] * 3, [(1, 64, 64)] * 3, channels=("grey", "attention_map"))
    plans = planner.plan(measured, Resources("cpu", 8.0), make_dataset())
    planned = plans.configurations["2d"]
    network = planned.network.model_copy(update={"options": with_options})
    return plans.model_copy(update={"configurations": {"2d": planned.model_copy(update={"network": network})}})


def write_model(folder, plans):
    """Write as much of a model folder as is read without its weights."""
    folder.mkdir()
    plans.write(folder / "plans.json")
    (folder / "weights").write_bytes(b"")
    named = {"name": "2d", "plans_file": "plans.json", "configuration": "2d", "architecture": "diamant"}
    member = named | {"trainer": "supervised", "folds": {"0": "weights"}, "mirror_axes": []}
    data = make_dataset()
    content = {
        "dataset_name": data.name, "channel_names": plans.channel_names, "labels": data.labels,
        "file_ending": ".nii.gz", "members": [member], "checksums": checksums(folder),
    }  # fmt: skip
    (folder / "model.json").write_text(Model(**content).model_dump_json())
    return folder


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
