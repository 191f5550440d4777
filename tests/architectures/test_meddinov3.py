"""MedDINOv3: published sizes, taps, token sizes, the decoder."""

import pytest
import torch
from network_specs import count, make, make_spec, stir

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained


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


@pytest.mark.parametrize("taps", ["multi", "last"])
def test_step_by_step(taps):
    """Extra tokens, blocks, the final norm on every tap, their order, the decoder."""
    torch.manual_seed(0)
    network = stir(make("meddinov3", make_spec(2, 3, patch=(16, 16), base=4, taps=taps)))
    x, conv = torch.randn(2, 1, 16, 16).double(), torch.nn.functional.conv2d
    body = network.backbone
    for tokens in (body.cls_token, body.storage_tokens):
        torch.nn.init.normal_(tokens)
    assert len(body.blocks) == 4
    patches = conv(torch.cat([x] * 3, 1), body.patch_embed.proj.weight, body.patch_embed.proj.bias, 4)
    tokens = torch.cat([body.cls_token, body.storage_tokens], 1).expand(2, -1, -1)
    tokens, found = torch.cat([tokens, patches.flatten(2).mT], 1), []
    for block in body.blocks:
        tokens = block(tokens, body.rope_embed((4, 4)))
        normed = torch.nn.functional.layer_norm(tokens, (128,), body.norm.weight, body.norm.bias, 1e-6)
        found.append(normed[:, 5:].mT.unflatten(2, (4, 4)))
    found = found if taps == "multi" else found[-1:]
    for ours, wanted in zip(network.encode(x), found, strict=True):
        torch.testing.assert_close(ours, wanted)
    y, head = torch.cat(found, 1), network.decoder[-1]
    for up, norm in zip(network.decoder[0:-1:3], network.decoder[1:-1:3], strict=True):
        y = torch.nn.functional.conv_transpose2d(y, up.weight, up.bias, 2).movedim(1, -1)
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, 1e-6).movedim(-1, 1)
        y = torch.nn.functional.gelu(y)
    torch.testing.assert_close(network(x), conv(y, head.weight, head.bias))


def test_initial_values():
    torch.manual_seed(0)
    network = make("meddinov3", make_spec(2, 3, patch=(16, 16), base=4))
    block, up = network.backbone.blocks[0], network.decoder[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.mlp.fc1.bias.any()
    assert network.backbone.storage_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert (block.ls1.gamma == 1e-5).all()
    assert up.weight.std().item() == pytest.approx((2 / (up.weight[0].numel() * 1.0001)) ** 0.5, rel=0.05)


def test_a_teachers_weights_are_loaded(tmp_path):
    """As released: the entry "teacher", the backbone beside the heads of its pretraining."""
    torch.manual_seed(0)
    source, network = (make("meddinov3", make_spec(2, 3, patch=(16, 16), base=4)) for _ in range(2))
    state = {name: value for name, value in source.state_dict().items() if name.startswith("backbone.")}
    torch.save({"teacher": state | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}}, tmp_path / "teacher.pth")
    table = load_pretrained(network, tmp_path / "teacher.pth")
    assert {row.name.split(".")[0] for row in table if row.status == "loaded"} == {"backbone"}
    assert {row.name.split(".")[0] for row in table if row.status != "loaded"} == {"decoder"}
    assert torch.equal(network.backbone.storage_tokens, source.backbone.storage_tokens)
