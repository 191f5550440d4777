"""DIAMANT: its size, where the maps come from, two encoders, skips."""

import logging

import pytest
import torch
from autoseg.architectures.blocks.attention_maps import ViTSize, attention_maps, random_vit
from network_specs import count, make, make_spec
from planning_factory import make_dataset, make_fingerprint

from autoseg.errors import UserError
from autoseg.planning.resources import Resources
from autoseg.plugins import load
from autoseg.training.asked import configure
from autoseg.workspace import Workspace

RESOURCES = Resources("cpu", 8.0)
TINY = ViTSize(width=64, depth=2, heads=1, patch=4, side=3)


def with_channels(**changes):
    return make("diamant", make_spec(2, 3, patch=(16, 16), base=4, **({"channels": 3, "maps": 2} | changes)))


@pytest.fixture
def vit_file(tmp_path):
    torch.save(random_vit(TINY, saved=True).state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def test_the_parameter_count_of_the_description():
    with torch.device("meta"):
        spec = make_spec(2, 5, patch=(256, 256), channels=9, outputs=1, deep=False, maps=6)
        spec = spec.model_copy(update={"features": (32, 64, 128, 256, 512)})
        network = make("diamant", spec)
        narrow = make("diamant", spec.model_copy(update={"options": {"maps": 6, "skip": "image"}}))
    assert count(network) == 10_900_129
    assert count(network) - count(narrow) == sum(width * width * 9 for width in (32, 64, 128, 256))


def test_the_last_channels_are_the_maps():
    torch.manual_seed(0)
    network, x = with_channels().eval(), torch.randn(1, 3, 16, 16)
    assert network.vit is None
    assert network.image_encoder[0][0].in_channels == 1
    assert network.map_encoder[0][0].in_channels == 2
    image, maps = network.split(x)
    assert torch.equal(torch.cat([image, maps], 1), x)
    assert image.shape[1] == 1


def test_encoders_meet_in_the_bottleneck_and_in_the_skips():
    torch.manual_seed(0)
    network, x = with_channels().eval(), torch.randn(1, 3, 16, 16)
    other = x.clone()
    other[:, 1:] += 1
    with torch.no_grad():
        first, second = network.encode(x), network.encode(other)
    assert [tuple(feature.shape[1:]) for feature in first] == [(8, 16, 16), (16, 8, 8), (16, 4, 4)]
    for a, b, width in zip(first, second, (4, 8, 0), strict=True):
        assert torch.equal(a[:, :width], b[:, :width])  # image first
        assert not torch.equal(a[:, width:], b[:, width:])
    alone = with_channels(skip="image").eval()
    with torch.no_grad():
        assert [feature.shape[1] for feature in alone.encode(x)] == [4, 8, 16]


def test_without_maps_it_is_a_u_net_of_the_image():
    torch.manual_seed(0)
    network, x = with_channels().eval(), torch.randn(1, 3, 16, 16)
    x[:, 1:] = 0
    torch.nn.init.zeros_(network.map_encoder[0][0].weight)
    with torch.no_grad():
        for feature, width in zip(network.encode(x)[:-1], (4, 8), strict=True):
            assert (feature[:, width:] == 0).all()
        logits = network(x)
        # a U-Net by hand, from the weights that are left
        image, skips = x[:, :1], []
        for unit, pool in zip(network.image_encoder, network.pools, strict=True):
            skips.append(unit(image))
            image = pool(skips[-1])
        first = network.bottleneck[0]
        y = network.bottleneck[1:](torch.nn.functional.conv2d(image, first.weight[:, :8], padding=1))
        for level in (1, 0):
            first, width = network.decoder[level][0], (4, 8)[level]
            joined = torch.cat([network.ups[level](y), skips[level]], 1)
            y = network.decoder[level][1:](torch.nn.functional.conv2d(joined, first.weight[:, : 2 * width], padding=1))
        torch.testing.assert_close(network.heads[0](y), logits)


def test_resolution_falls_by_the_maximum():
    pools = with_channels().pools
    assert [(type(pool).__name__, pool.kernel_size, pool.stride) for pool in pools] == [
        ("MaxPool2d", (2, 2), (2, 2))
    ] * 2


def test_maps_of_a_file_are_those_of_the_channels(vit_file):
    torch.manual_seed(0)
    computing = make("diamant", make_spec(2, 3, patch=(16, 16), base=4, vit_file=str(vit_file))).eval()
    given = with_channels(channels=2, maps=1).eval()
    given.load_state_dict(computing.state_dict())  # the ViT's weights are not among them
    x = torch.randn(2, 1, 16, 16)
    maps = attention_maps(random_vit(TINY), x)
    with torch.no_grad():
        torch.testing.assert_close(computing(x), given(torch.cat([x, maps], 1)))
        assert computing(torch.randn(1, 1, 24, 32)).shape == (1, 3, 24, 32)
    assert not any(parameter.shape == computing.vit.pos_embed.shape for parameter in computing.parameters())


def test_the_file_is_remembered_by_its_hash(vit_file):
    network = make("diamant", make_spec(2, 3, patch=(16, 16), base=4, vit_file=str(vit_file)))
    assert network.spec.options["vit"] == list(TINY)
    assert len(network.spec.options["vit_hash"]) == 64
    again = type(network)(network.spec)
    assert torch.equal(again.vit.pos_embed, network.vit.pos_embed)
    state = torch.load(vit_file)
    state["cls_token"] += 1
    torch.save(state, vit_file)
    with pytest.raises(UserError, match="another one than the network was trained with"):
        type(network)(network.spec)
    vit_file.unlink()
    with pytest.raises(UserError, match="is not there"):
        type(network)(network.spec)


def test_a_random_vit_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        network = make("diamant", make_spec(2, 3, patch=(16, 16), base=4))
    assert "random ViT" in caplog.text
    assert "vit_file" in caplog.text
    assert network.map_encoder[0][0].in_channels == 6
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        with_channels()
    assert not caplog.text


def test_a_volume_with_a_coarse_axis():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("diamant", make_spec(strides=strides, patch=(4, 16, 16), base=4)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 4, 16, 16))
        assert network.decode(features).shape == (1, 3, 4, 16, 16)
    assert [tuple(feature.shape[2:]) for feature in features] == [(4, 16, 16), (4, 8, 8), (2, 4, 4)]
    kinds = {type(module).__name__ for module in network.modules()}
    assert "InstanceNorm3d" in kinds
    assert "BatchNorm2d" in {type(module).__name__ for module in with_channels().modules()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": 2, "channel_names": ["a", "b"]}, "2 of 2 input channels cannot be attention maps"),
        ({"channel_names": ["a", "b", "c", "d"]}, "the plans name 4 channels, the network has 3"),
        ({"maps": 3}, "3 of 3 input channels cannot be attention maps"),
        ({"skip": "none"}, "cannot take skip="),
        ({"vit_file": "missing.pth", "maps": None}, "is not there"),
        ({"vit": [64, 2, 3, 8, 14], "maps": None}, "vit takes width"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        with_channels(**options)


def test_it_uses_what_the_maps_tell():
    """Images are noise; the squares to find show in the maps, blurred, or nowhere."""
    right = {}
    for informed in (True, False):
        torch.manual_seed(0)
        network = with_channels(outputs=2, deep=False)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        for step in range(31):
            x, target = torch.randn(8, 3, 16, 16), torch.zeros(8, 16, 16, dtype=torch.long)
            for number, (row, column) in enumerate(torch.randint(0, 9, (8, 2)).tolist()):
                target[number, row : row + 7, column : column + 7] = 1
            if informed:
                blurred = torch.nn.functional.avg_pool2d(target[:, None].float(), 5, 1, 2)
                x[:, 1:] = blurred + 0.1 * x[:, 1:]
            logits = network(x)
            right[informed] = 2 * (logits.argmax(1) * target).sum() / (logits.argmax(1) + target).sum()
            if step < 30:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, target).backward()
                optimizer.step()
    assert right[True] > right[False] + 0.3


NAMES = ("grey", *["attention_map"] * 3)


def test_the_maps_of_the_data_are_taken_as_such():
    """Else a random ViT would give the maps, and those of the data would be channels of the image."""
    suit, record = load("architecture", "diamant").options_for, {"vit_hash": "a", "heads": 3}
    described = {"attention_maps": record}
    options = suit({"skip": "image"}, NAMES, described)
    assert options == {"skip": "image", "maps": 3, "maps_vit": record, "channel_names": list(NAMES)}
    assert suit(options, NAMES, described) == options
    assert suit({}, ("grey",), {}) == {"channel_names": ["grey"]}
    assert with_channels(channels=4, **options).map_encoder[0][0].in_channels == 3
    assert load("architecture", "plain_unet").options_for({}, NAMES, described) == {}
    for maps in (0, 1):
        with pytest.raises(UserError, match=f"3 of the data's channels are attention maps, not {maps}(.|\\n)*maps=3"):
            suit({"maps": maps}, NAMES, described)
    with pytest.raises(UserError, match="another ViT"):
        suit(options, NAMES, {"attention_maps": record | {"vit_hash": "b"}})


def test_maps_may_stand_anywhere():
    network = with_channels(channels=4, maps=2, channel_names=["attention_map", "T1", "Attention_Map", "T2"])
    image, maps = network.split(torch.arange(4.0).view(1, 4, 1, 1))
    assert image.flatten().tolist() == [1, 3]
    assert maps.flatten().tolist() == [0, 2]


@pytest.mark.parametrize("given", [{}, {"maps": 2}])
def test_in_a_cascade_the_labels_of_the_stage_before_belong_to_the_image(given):
    """They stand behind the maps; a real plan of a liver, which gets a cascade."""
    names = ("CT", "attention_map", "attention_map") if not given else ("CT", "first", "second")
    measured = make_fingerprint((1.0, 0.77, 0.77), (480, 512, 512), cases=100, channels=names)
    planner = load("planner", "nnunet")(wanted=["3d_cascade_fullres"], architecture="diamant", network_options=given)
    plans = planner.plan(measured, RESOURCES, make_dataset(channels=names))
    spec = plans.configuration("3d_cascade_fullres").network
    assert (spec.in_channels, spec.options["maps"]) == (5, 2)  # CT, two maps, two labels
    with torch.device("meta"):
        network = load("architecture", "diamant")(spec)
    x = torch.arange(5.0).view(1, 5, 1, 1, 1)
    image, maps = network.split(x)
    assert image.flatten().tolist() == [0, 3, 4]
    assert maps.flatten().tolist() == [1, 2]
    assert network.image_encoder[0][0].in_channels == 3
    assert network.map_encoder[0][0].in_channels == 2
    lowres = load("architecture", "diamant")(plans.configuration("3d_lowres").network)
    assert [part.flatten().tolist() for part in lowres.split(x[:, :3])] == [[0], [1, 2]]


def test_no_vit_sees_the_labels_of_the_stage_before(vit_file):
    network = with_channels(channels=3, maps=None, vit_file=str(vit_file), channel_names=["grey"])
    x = torch.rand(2, 3, 16, 16)
    image, maps = network.split(x)
    assert torch.equal(image, x)
    assert torch.equal(maps, attention_maps(network.vit, x[:, :1]))


def test_images_with_maps_of_another_vit_are_refused(caplog):
    record = {"vit_hash": "aa", "heads": 2}
    network = with_channels(maps_vit=record)
    network.check_images({"attention_maps": record})
    assert not caplog.records
    with pytest.raises(UserError, match=r"another ViT \(SHA-256 bb\)[\s\S]*trained with \(aa\)[\s\S]*map_channels"):
        network.check_images({"attention_maps": record | {"vit_hash": "bb"}})
    with pytest.raises(UserError, match="made in another way"):
        network.check_images({"attention_maps": record | {"scaling": "none"}})
    network.check_images({})
    assert "nothing tells which ViT" in caplog.records[0].getMessage()
    with_channels().check_images({"attention_maps": record})  # trained before plans recorded it


@pytest.mark.parametrize("given", [{}, {"maps": 1}])
def test_planning_and_another_architecture_look_at_the_channels(given, tmp_path):
    data = make_dataset(channels=NAMES)
    measured = make_fingerprint([(1, 1, 1)] * 3, [(1, 64, 64)] * 3, channels=NAMES)
    planner = load("planner", "nnunet")
    if given:
        with pytest.raises(UserError, match="maps=3"):
            planner(wanted=["2d"], architecture="diamant", network_options=given).plan(measured, RESOURCES, data)
        return
    plans = planner(wanted=["2d"], architecture="diamant").plan(measured, RESOURCES, data)
    assert plans.configurations["2d"].network.options["maps"] == 3
    plans = planner(wanted=["2d"]).plan(measured, RESOURCES, data)
    asked = configure(plans, "2d", "diamant", dataset=data, workspace=Workspace.open(tmp_path))
    assert asked.network.options["maps"] == 3


def test_maps_and_a_file_are_refused(vit_file):
    with pytest.raises(UserError, match="not both"):
        with_channels(vit_file=str(vit_file))
