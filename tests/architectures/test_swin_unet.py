"""Swin-U-Net: published sizes, names that the masked autoencoder's weights fit, depths, drop-path rates."""

import pytest
import torch
from network_specs import count, make, make_spec, stir, to_first, to_last

from autoseg import plugins
from autoseg.errors import UserError


def published(**options):
    with torch.device("meta"):
        return make("swin_unet", make_spec(2, 6, patch=(224, 224), channels=3, **options))


def test_published_parameter_count():
    network = published()
    assert count(network) == 41_378_724
    assert [len(layer.blocks) for layer in network.layers] == [2, 2, 6, 2]
    assert [len(layer.blocks) for layer in network.layers_up] == [6, 2, 2]
    assert network.head.bias is None


def test_the_parts_of_the_masked_autoencoder():
    network = published(depths=[2, 2, 2, 2])
    assert count(network.patch_embed) == 4_896
    assert count(network.layers) == 20_406_954
    assert count(network.layers_up) == 5_038_650
    assert count(network.first_patch_expanding) == 1_180_416
    assert count(network.norm_up) == 192
    # 220 tensors of the autoencoder fit, 14 of them tables of indices, which are no weights here
    shared = [
        name for name in network.state_dict() if not name.startswith(("skips.", "final_patch_expanding.", "head."))
    ]
    assert len(shared) == 220 - 14
    for name in (
        "patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.1.attn.relative_position_bias_table",
        "layers.2.blocks.0.mlp.fc2.weight", "layers.1.downsample.reduction.weight", "layers.3.blocks.1.norm2.weight",
        "first_patch_expanding.expand.weight", "layers_up.1.upsample.norm.weight", "layers_up.2.blocks.0.attn.qkv.bias",
        "norm_up.weight",
    ):  # fmt: skip
        assert name in shared
    assert "layers.3.downsample.norm.weight" not in shared
    assert not any(name.startswith("layers_up.2.upsample") for name in shared)


def test_the_autoencoders_blocks_are_found_in_the_deeper_network():
    deep, flat = published().state_dict(), published(depths=[2, 2, 2, 2]).state_dict()
    assert all(deep[name].shape == tensor.shape for name, tensor in flat.items())
    extra = {".".join(name.split(".")[:4]) for name in deep.keys() - flat.keys()}
    assert extra == {f"{part}.blocks.{block}" for part in ("layers.2", "layers_up.0") for block in range(2, 6)}


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_shapes(size):
    torch.manual_seed(0)
    network = make(
        "swin_unet", make_spec(2, 6, patch=(64, 64), channels=3, outputs=5, base=4, depths=[2, 2, 2, 2])
    ).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = network.encode(x)
        assert network.decode(features).shape == (2, 5, *size)
    grids = [(feature.shape[1], size[0] // feature.shape[2], size[1] // feature.shape[3]) for feature in features]
    assert grids == [(12, 4, 4), (24, 8, 8), (48, 16, 16), (96, 32, 32)]


def test_drop_path_rises_and_the_decoder_takes_its_counterparts_rates():
    network = published()
    rates = [[block.drop_path.rate for block in layer.blocks] for layer in network.layers]
    flat = [rate for stage in rates for rate in stage]
    assert flat == pytest.approx([0.1 * block / 11 for block in range(12)])
    up = [[block.drop_path.rate for block in layer.blocks] for layer in network.layers_up]
    assert up == rates[2::-1]


def test_tokens_and_mergings_follow_the_plan():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    network = make("swin_unet", make_spec(strides=strides, patch=(6, 32, 32), base=4)).eval()
    assert network.patch_embed.proj.kernel_size == (1, 4, 4)
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.randn(1, 1, 6, 32, 32))]
    assert shapes == [(6, 8, 8), (3, 4, 4)]
    assert make("swin_unet", make_spec(2, 3, base=4)).patch_embed.proj.kernel_size == (2, 2)
    assert len(make("swin_unet", make_spec(2, 2, base=4)).layers_up) == 0
    with torch.device("meta"):
        assert len(make("swin_unet", make_spec(2, 8, patch=(256, 256), base=4)).layers) == 4
    assert plugins.load("architecture", "swin_unet").adapt_spec(make_spec(2, 6)).features == (96, 96, 96, 192, 384, 768)
    with pytest.raises(UserError, match="2 to 6 resolutions"):
        make("swin_unet", make_spec(2, 1))


def test_linear_layers_start_small():
    torch.manual_seed(0)
    network = make("swin_unet", make_spec(2, 4, base=8))
    linears = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert all(linear.bias is None or not linear.bias.any() for linear in linears)
    assert all(linear.weight.std().item() == pytest.approx(0.02, rel=0.2) for linear in linears)


def test_skips_reach_the_output():
    torch.manual_seed(0)
    network = make("swin_unet", make_spec(2, 6, patch=(64, 64), base=4)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 64, 64))
        whole = network.decode(features)
        for level in range(4):
            without = [feature * (number != level) for number, feature in enumerate(features)]
            assert (network.decode(without) - whole).abs().max() > 1e-4


def expand(layer, tokens, step):
    """By definition: Linear, its parts put row-major into the block of their token, norm."""
    batch, rows, columns, _ = tokens.shape
    parts = torch.nn.functional.linear(tokens, layer.expand.weight).reshape(batch, rows, columns, step, step, -1)
    return layer.norm(parts.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * step, columns * step, -1))


def mix(layer, tokens):
    for block in layer.blocks:
        tokens = tokens + block.attend(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return tokens


def test_step_by_step():
    """Embedding, mergings, expansions, joins, norms and head around the blocks."""
    torch.manual_seed(0)
    network = stir(make("swin_unet", make_spec(2, 5, patch=(32, 32), base=4, window=2)))
    x, conv = torch.randn(1, 1, 32, 32).double(), torch.nn.functional.conv2d
    embed = network.patch_embed
    tokens, inputs = embed.norm(to_last(conv(x, embed.proj.weight, embed.proj.bias, 4))), []
    for layer in network.layers:
        inputs.append(tokens)
        tokens = mix(layer, tokens)
        if layer is not network.layers[-1]:
            merge = layer.downsample
            parts = torch.cat([tokens[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)  # (0,0), (1,0), (0,1), (1,1)
            tokens = torch.nn.functional.linear(merge.norm(parts), merge.reduction.weight)
    for found, wanted in zip(network.encode(x), (inputs[0], inputs[1], tokens), strict=True):
        torch.testing.assert_close(to_last(found), wanted)
    tokens = expand(network.first_patch_expanding, tokens, 2)
    for number, layer in enumerate(network.layers_up):
        join, skip = network.skips[number], inputs[1 - number]
        tokens = to_last(conv(to_first(torch.cat([tokens, skip], -1)), join.weight, join.bias))
        tokens = mix(layer, tokens)
        if number == 0:
            tokens = expand(layer.upsample, tokens, 2)
    last = expand(network.final_patch_expanding, network.norm_up(tokens), 4)
    torch.testing.assert_close(network(x), conv(to_first(last), network.head.weight))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
