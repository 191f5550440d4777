"""Primus: published sizes, token grids, decoder widths."""

from functools import cache

import pytest
import torch
from autoseg.architectures import primus
from autoseg.architectures.blocks import primus_weights
from network_specs import count, make, make_spec, stir

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained


@pytest.mark.parametrize(
    ("version", "size", "wanted"),
    [
        (1, "S", 23_386_526),
        (2, "S", 24_159_518),
        (1, "M", 145_551_770),
        (2, "M", 146_145_050),
        (1, "B", 92_243_498),
        (1, "L", 324_270_626),
        (3, "S", 70_596_165),
    ],
)
def test_parameter_counts(version, size, wanted):
    """S and M are published exactly, V3 S as 70.6 million; B and L follow from the published widths and depths."""
    with torch.device("meta"):
        network = make("primus", make_spec(stages=5, patch=(64,) * 3, outputs=2, version=version, size=size))
    assert count(network) == wanted


def test_how_the_small_networks_divide():
    with torch.device("meta"):
        first, second = (
            make("primus", make_spec(stages=5, patch=(64,) * 3, outputs=2, version=version, size="S"))
            for version in (1, 2)
        )
    assert (count(first.tokenizer), count(second.tokenizer)) == (203_148, 976_140)
    assert count(first.decoder) == count(second.decoder) == 290_618
    assert count(first) - count(first.tokenizer) - count(first.decoder) == 22_892_760
    assert (first.sine.shape, first.cosine.shape) == ((512, 66), (512, 66))
    assert first.blocks[0].mlp.gate.out_features == 1056


@pytest.mark.parametrize(("size", "hidden"), [("S", 1056), ("B", 2112), ("M", 2304), ("L", 2816)])
def test_hidden_widths(size, hidden):
    with torch.device("meta"):
        network = make("primus", make_spec(stages=5, patch=(64,) * 3, size=size))
    assert network.blocks[-1].mlp.out.in_features == hidden
    assert network.blocks[-1].drop_path.rate == pytest.approx(0.2)
    assert network.blocks[0].drop_path.rate == 0


def test_decoder_widths():
    assert primus.decoder_widths(396, 3, 3) == [396, 96, 24, 3]
    assert primus.decoder_widths(396, 2, 3) == [396, 88, 16, 2]


def test_output_of_64_cubed():
    network = make("primus", make_spec(stages=4, patch=(64,) * 3, base=4, size="S")).eval()
    with torch.no_grad():
        x = torch.randn(1, 1, 64, 64, 64)
        assert network(x).shape == (1, 3, 64, 64, 64)
        assert network.encode(x)[0].shape == (1, 66, 8, 8, 8)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_without_blocks_it_is_tokenizer_norm_decoder(version):
    torch.manual_seed(0)
    network = make("primus", make_spec(2, 4, base=4, size="S", version=version)).eval()
    for block in network.blocks:
        torch.nn.init.zeros_(block.scale_attention)
        torch.nn.init.zeros_(block.scale_mlp)
    x = torch.randn(1, 1, 32, 32)
    tokens = network.tokenizer(x).flatten(2).mT + network.position
    wanted = network.decoder(network.norm(tokens).mT.unflatten(2, (4, 4)))
    torch.testing.assert_close(network(x), wanted)


def test_every_token_is_seen_by_all():
    torch.manual_seed(0)
    network = make("primus", make_spec(2, 4, base=4, size="S", version=1)).eval()
    x = torch.randn(1, 1, 32, 32)
    other = x.clone()
    other[..., :8, :8] += 1
    with torch.no_grad():
        changed = (network(x) - network(other)).abs().amax(1)[0]
    assert (changed.unflatten(0, (4, 8)).unflatten(2, (4, 8)).amax((1, 3)) > 1e-7).all()


@pytest.mark.parametrize(
    ("strides", "token"),
    [
        (((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), (8, 8, 8)),
        (((1, 1, 1), (2, 2, 2), (2, 2, 2)), (8, 8, 8)),
        (((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)), (4, 8, 8)),
        (((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)), (2, 8, 8)),
        (((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2)), (1, 8, 8)),
        (((1, 1), (2, 2), (2, 1)), (8, 8)),
    ],
)
def test_token_sizes_follow_the_plan(strides, token):
    spec = make_spec(len(token), strides=strides)
    kind = plugins.load("architecture", "primus")
    assert kind.patch_multiple(spec) == token
    assert kind.patch_multiple(kind.adapt_spec(spec)) == token


def test_coarse_tokens():
    assert primus.decoder_strides((2, 8, 8)) == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    for version in (1, 2, 3):
        network = make("primus", make_spec(strides=strides, patch=(6, 16, 24), base=4, version=version)).eval()
        with torch.no_grad():
            assert network.encode(torch.zeros(1, 1, 6, 16, 24))[0].shape[2:] == (3, 2, 3)
            assert network(torch.zeros(1, 1, 6, 16, 24)).shape == (1, 3, 6, 16, 24)


def test_initial_weights():
    torch.manual_seed(0)
    network = make("primus", make_spec(2, 4, size="S"))
    for number in (1, 12):
        block = network.blocks[number - 1]
        assert block.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.02)
        for layer in (block.attention.out, block.mlp.out):
            assert layer.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.02)
        assert (block.scale_attention == torch.tensor(0.1)).all()
    assert network.position.std().item() == pytest.approx(0.02, rel=0.05)


def test_narrow_plans_get_narrow_networks():
    assert len(make("primus", make_spec(2, 3, base=8)).blocks) == 4
    spec = make("primus", make_spec(2, 3, base=8)).spec
    assert spec.options == {"version": 2, "size": "M", "token_size": [8, 8], "depth": 4, "heads": 3}


def test_wrong_options_and_patches_are_refused():
    for options in ({"size": "XL"}, {"version": 4}, {"heads_per_layer": 3}):
        with pytest.raises(UserError, match="Primus"):
            make("primus", make_spec(**options))
    with pytest.raises(UserError, match="powers of two"):
        make("primus", make_spec(token_size=[6, 6, 6]))
    with pytest.raises(UserError, match="no multiple"):
        make("primus", make_spec(2, patch=(20, 20)))
    with pytest.raises(UserError, match="built for patches"):
        make("primus", make_spec(2, patch=(16, 16), base=4))(torch.zeros(1, 1, 24, 16))


def tokens_of(tokenizer, x, version):
    """By definition: residual convolutions, a projection, in version 3 projections of earlier maps."""
    conv, norm = torch.nn.functional.conv2d, torch.nn.functional.instance_norm
    slope = {2: 0.0, 3: 0.01}[version]

    def normed(layer, y):
        return norm(y, weight=layer.weight, bias=layer.bias)

    y, maps = x, []
    for number, block in enumerate(tokenizer.blocks):
        step = 2 if number else 1
        first, norm1, _, second, norm2 = block.convs
        assert (first.bias is None) == (second.bias is None) == (number > 0)
        inner = normed(norm1, conv(y, first.weight, first.bias, step, 1))
        inner = torch.nn.functional.leaky_relu(inner, slope)
        inner = normed(norm2, conv(inner, second.weight, second.bias, padding=1))
        skip = torch.nn.functional.avg_pool2d(y, 2) if number else y
        if first.in_channels != first.out_channels:
            projection, after = block.skip[-2:]
            skip = normed(after, conv(skip, projection.weight))
        y = torch.nn.functional.leaky_relu(inner + skip, slope)
        maps.append(y)
    tokens = conv(y, tokenizer.project.weight, tokenizer.project.bias)
    if version == 3:
        for scale, skip, earlier, stride in zip(tokenizer.skip_scales, tokenizer.skips, maps, (8, 4, 2), strict=False):
            tokens = tokens + scale * conv(earlier, skip.weight, skip.bias, stride)
    return tokens


@pytest.mark.parametrize("version", [1, 2, 3])
def test_step_by_step(version):
    """Tokenizer, both kinds of positions, blocks, final norm, decoder."""
    torch.manual_seed(0)
    network = stir(make("primus", make_spec(2, 4, base=4, size="S", version=version)))
    x, first = torch.randn(2, 1, 32, 32).double(), network.tokenizer
    if version == 1:
        tokens = torch.nn.functional.conv2d(x, first.weight, first.bias, 8)
    else:
        tokens = tokens_of(first, x, version)
        widths = [block.convs[0].out_channels for block in first.blocks]
        assert widths == {2: [32, 32, 64, 128], 3: [32, 64, 256, 1024]}[version]
    torch.testing.assert_close(first(x), tokens)
    tokens = tokens.flatten(2).mT + network.position
    for block in network.blocks:
        tokens = block(tokens, network.sine, network.cosine)
    norm = network.norm
    tokens = torch.nn.functional.layer_norm(tokens, (66,), norm.weight, norm.bias)
    y = tokens.mT.unflatten(2, (4, 4))
    torch.testing.assert_close(network.encode(x)[0], y)
    for number in (0, 3, 6):
        up = network.decoder[number]
        y = torch.nn.functional.conv_transpose2d(y, up.weight, up.bias, 2)
        if number < 6:
            norm = network.decoder[number + 1]
            y = torch.nn.functional.layer_norm(y.movedim(1, -1), y.shape[1:2], norm.weight, norm.bias, 1e-6)
            y = torch.nn.functional.gelu(y.movedim(-1, 1))
    torch.testing.assert_close(network(x), y)
    assert len(network.decoder) == 7


def test_first_values_of_scales_and_slopes():
    network = make("primus", make_spec(2, 4, base=4, size="S", version=3))
    assert [scale.item() for scale in network.tokenizer.skip_scales] == pytest.approx([1e-5] * 3)


def authors_network(version):
    """Theirs, of dynamic-network-architectures, which needs timm and its torchvision."""
    try:
        from dynamic_network_architectures.architectures import primus as theirs
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the latter
        pytest.skip(f"timm cannot be imported: {error}")
    sizes = {"eva_depth": 2, "eva_numheads": 1, "input_shape": (16, 24, 8)}
    kind = getattr(theirs, {1: "Primus", 2: "PrimusV2", 3: "PrimusV3"}[version], None)
    if kind is None:
        pytest.skip("this dynamic-network-architectures is older than that version")
    return kind(2, 66, (8, 8, 8), 3, init_values=0.1, scale_attn_inner=True, **sizes)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_equal_to_the_authors_network_with_its_weights(tmp_path, version):
    torch.manual_seed(0)
    theirs = stir(authors_network(version)).float()
    ours = make("primus", make_spec(patch=(16, 24, 8), channels=2, base=4, size="S", version=version, depth=2)).eval()
    torch.save({"network_weights": theirs.state_dict()}, tmp_path / "primus.pth")
    assert {row.status for row in load_pretrained(ours, tmp_path / "primus.pth")} == {"loaded"}
    x = torch.randn(1, 2, 16, 24, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("eva.blocks.3.attn.q_proj.bias", "blocks.3.attention.query.bias"),
        ("eva.blocks.3.attn.proj.weight", "blocks.3.attention.out.weight"),
        ("eva.blocks.0.gamma_2", "blocks.0.scale_mlp"),
        ("eva.blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.gate.weight"),
        ("eva.norm.bias", "norm.bias"),
        ("down_projection.proj.weight", "tokenizer.weight"),
        ("down_projection.stem.blocks.0.conv2.conv.bias", "tokenizer.blocks.0.convs.3.bias"),
        ("down_projection.stages.1.blocks.0.conv1.norm.weight", "tokenizer.blocks.2.convs.1.weight"),
        ("down_projection.stages.1.blocks.0.skip.1.norm.weight", "tokenizer.blocks.2.skip.2.weight"),
        ("down_projection.scale_proj_to_tokens.2", "tokenizer.skip_scales.2"),
        ("up_projection.decode.1.0.weight", "decoder.3.weight"),
        ("up_projection.decode.1.1.bias", "decoder.4.bias"),
        ("up_projection.decode.2.bias", "decoder.6.bias"),
        ("mask_token", None),
        ("down_projection.stem.blocks.0.conv1.all_modules.0.weight", None),
    ],
)
def test_the_authors_names(theirs, ours):
    found = primus_weights.translate({theirs: torch.zeros(1)})
    assert list(found) == ([ours] if ours else [])
    assert ours is None or ours in names_of_all_versions()


@cache
def names_of_all_versions():
    with torch.device("meta"):
        networks = [make("primus", make_spec(size="S", version=version)) for version in (1, 2, 3)]
    return {name for network in networks for name in network.state_dict()}


def test_positions_of_another_grid_are_interpolated():
    network = make("primus", make_spec(2, 4, patch=(32, 48), base=4, size="S"))
    table = torch.randn(1, 4, 66)
    found = network.translate_weights({"eva.pos_embed": table, "eva.mask": table})
    wanted = torch.nn.functional.interpolate(table.mT.reshape(1, 66, 2, 2), size=(4, 6), mode="bilinear")
    assert found.keys() == {"position"}
    torch.testing.assert_close(found["position"], wanted.flatten(2).mT)
