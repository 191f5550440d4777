"""MedDINOv3: published sizes, taps, token sizes, the decoder."""

import pytest
import torch
from network_specs import count, make, make_spec

from autoseg import plugins
from autoseg.errors import UserError


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("meddinov3", make_spec(2, 8, patch=(896, 896), outputs=14))
        last = make("meddinov3", make_spec(2, 8, patch=(896, 896), outputs=14, taps="last"))
    mask_token = network.backbone.mask_token.numel()
    assert count(network) + mask_token == 110_720_846
    assert count(network.backbone) + mask_token == 85_641_984
    assert count(network.decoder) == 25_078_862
    widths = [layer.in_channels for layer in last.decoder if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert widths == [768, 384, 192, 96]
    assert last.decoder[-1].in_channels == 48


def test_taps_of_the_published_sizes():
    for size, taps in {"S": (2, 5, 8, 11), "L": (5, 11, 17, 23)}.items():
        with torch.device("meta"):
            assert make("meddinov3", make_spec(2, 6, patch=(64, 64), size=size)).backbone.taps == taps
    with pytest.raises(UserError, match="depth that 4 divides"):
        make("meddinov3", make_spec(2, base=4, depth=6))


def test_any_multiple_of_16_in_not_square_images():
    torch.manual_seed(0)
    network = make("meddinov3", make_spec(2, 6, patch=(64, 64), outputs=14, base=4)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 128, 160))
        assert [tuple(feature.shape) for feature in features] == [(1, 128, 8, 10)] * 4
        assert network.decode(features).shape == (1, 14, 128, 160)


def test_the_last_tap_alone_is_the_ordinary_output():
    torch.manual_seed(0)
    network = make("meddinov3", make_spec(2, 4, patch=(32, 32), base=4, taps="last")).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        (features,) = network.encode(x)
        network.backbone.taps = (1, 3)
        assert torch.equal(network.encode(x)[1], features)


def test_token_size_follows_the_plan():
    kind = plugins.load("architecture", "meddinov3")
    for stages, token in {2: 4, 4: 4, 5: 8, 6: 16, 8: 16}.items():
        spec = kind.adapt_spec(make_spec(2, stages, patch=(256, 256)))
        assert spec.options["token_size"] == token
        assert kind.patch_multiple(spec) == (token, token)
    assert kind.adapt_spec(make_spec(2, 4, token_size=8)).options["token_size"] == 8
    with pytest.raises(UserError, match="cannot take token_size"):
        kind.adapt_spec(make_spec(2, 4, token_size=6))
    with pytest.raises(UserError, match="no multiple of the token size"):
        make("meddinov3", make_spec(2, 4, patch=(30, 30), base=4))


def test_one_channel_is_repeated_and_others_have_their_own_embedding():
    torch.manual_seed(0)
    for channels, wanted in {1: 3, 2: 2}.items():
        network = make("meddinov3", make_spec(2, 3, patch=(16, 16), base=4, channels=channels)).eval()
        assert network.backbone.patch_embed.proj.in_channels == wanted
        with torch.no_grad():
            assert network(torch.randn(1, channels, 16, 16)).shape == (1, 3, 16, 16)


def test_the_decoder_is_norm_and_gelu_after_each_doubling():
    network = make("meddinov3", make_spec(2, 3, patch=(16, 16), base=4))
    names = [type(layer).__name__ for layer in network.decoder]
    assert names == ["ConvTranspose2d", "ChannelNorm", "GELU"] * 2 + ["Conv2d"]
    assert network.decoder[0].in_channels == 4 * 128
    assert not network.decoder[0].bias.any()
    assert network.backbone.blocks[0].drop_path == 0.2
