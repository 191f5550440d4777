"""Hi-End-MAE's network: published sizes, steps up for any token size, positions, taps."""

import pytest
import torch
from autoseg.architectures.blocks.residual_conv import ResidualBlock
from autoseg.architectures.hi_end_mae import up_strides
from network_specs import count, make, make_spec, stir

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained

UNUSED_NORMS = 12 * 2 * 1536  # one per block in the published network, never applied


def small(dims=3, patch=(24, 24, 24), **options):
    return make("hi_end_mae", make_spec(dims, 3, patch=patch, base=4, heads=1, depth=4, **options)).eval()


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("hi_end_mae", make_spec(3, 6, patch=(96,) * 3, outputs=14))
    assert count(network) == 361_271_150 - UNUSED_NORMS
    parts = (network.patch_embed, network.blocks, network.norm)
    transformer = network.pos_embed.numel() + sum(count(part) for part in parts)
    assert transformer == 343_460_352 - UNUSED_NORMS
    assert count(network) - transformer == 17_810_798
    assert network.grid == (8, 8, 8)
    assert network.taps == (3, 6, 9)


def test_the_steps_up():
    two = (2, 2, 2)
    assert up_strides((12, 12, 12)) == ([two] * 3, None)
    assert up_strides((16, 16, 16)) == ([two] * 3, two)  # plain UNETR
    assert up_strides((8, 8, 8)) == ([two] * 2, two)
    assert up_strides((2, 2, 2)) == ([], two)
    assert up_strides((5, 7, 5)) == ([two] * 2, None)
    assert up_strides((4, 16, 16)) == ([two, two, (1, 2, 2)], (1, 2, 2))
    assert up_strides((4, 12, 12)) == ([two, two, (1, 2, 2)], None)
    assert up_strides((1, 4, 4)) == ([(1, 2, 2)], (1, 2, 2))
    assert up_strides((32, 32)) == ([(2, 2)] * 3, None)  # three skips are all that there are
    assert up_strides((1, 12, 12)) == ([(1, 2, 2)] * 3, None)


@pytest.mark.parametrize(
    ("token", "sizes"),
    [
        ((12, 12, 12), [24, 16, 8, 4, 2]), ((8, 8, 8), [24, 12, 6, 3]), ((3, 4, 6), [24, 16, 16, 8]),
        ((2, 4, 4), [24, 24, 12]),
    ],
)  # fmt: skip
def test_shapes_of_any_token_size(token, sizes):
    torch.manual_seed(0)
    network = small(token_size=list(token))
    x = torch.randn(1, 1, 24, 24, 24)
    with torch.no_grad():
        features = network.encode(x)
        assert [feature.shape[2] for feature in features] == sizes
        assert network.decode(features).shape == (1, 3, 24, 24, 24)
    assert [feature.shape[1] for feature in features] == [*(4 * 2**level for level in range(len(features) - 1)), 96]


def test_positions_start_as_sines_and_are_trained():
    network = small(patch=(4, 6, 8), token_size=[2, 2, 2])
    assert network.pos_embed.shape == (1, 2 * 3 * 4, 96)
    assert network.pos_embed.requires_grad
    token = network.pos_embed[0, 1 * 12 + 2 * 4 + 3]  # at (1, 2, 3)
    omega = 10000 ** (-torch.arange(16) / 16)
    wanted = torch.cat([f(place * omega) for place in (1, 2, 3) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(token, wanted)


def test_another_size_than_planned():
    torch.manual_seed(0)
    network = small(2, (24, 24), token_size=[6, 6])
    with torch.no_grad():
        assert network(torch.randn(2, 1, 30, 18)).shape == (2, 3, 30, 18)


def test_every_skip_is_the_tap_of_its_depth():
    torch.manual_seed(0)
    network = small(2, (24, 24), token_size=[12, 12])
    assert network.taps == (1, 2, 3)
    x = torch.randn(1, 1, 24, 24)
    with torch.no_grad():
        before = network.encode(x)
        network.blocks[2].mlp.fc2.bias.normal_()
        after = network.encode(x)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, True, True]  # the image, tap 1, then what sees block 2


def test_the_plan_sets_the_token_size():
    kind = plugins.load("architecture", "hi_end_mae")
    for patch, token in {(96, 96, 96): (12, 12, 12), (40, 56, 40): (5, 7, 5), (12, 192, 20): (2, 16, 3)}.items():
        spec = kind.adapt_spec(make_spec(patch=patch))
        assert tuple(spec.options["token_size"]) == kind.patch_multiple(spec) == token
    options = kind.adapt_spec(make_spec(base=8)).options
    assert (options["depth"], options["heads"]) == (4, 1)
    with pytest.raises(UserError, match="no multiple of the token size"):
        small(patch=(25, 24, 24), token_size=[12, 12, 12])
    with pytest.raises(UserError, match="whole numbers"):
        small(token_size=[1, 1, 1])
    with pytest.raises(UserError, match="a depth of 4 or more"):
        make("hi_end_mae", make_spec(base=4, depth=3))


def raise_tokens(path, tokens):
    """By definition: a transposed convolution, then more of them, each with a residual block."""
    transposed = torch.nn.functional.conv_transpose2d
    y = transposed(tokens, path.layers[0].weight, stride=2)
    for up, block in zip(path.layers[1::2], path.layers[2::2], strict=True):
        assert isinstance(block, ResidualBlock)
        y = block(transposed(y, up.weight, stride=2))
    return y


@pytest.mark.parametrize(("token", "taps"), [(12, (1, 2, 3)), (8, (2, 3))])
def test_step_by_step(token, taps):
    """Positions, blocks, taps, final norm, ways up, last step and head."""
    torch.manual_seed(0)
    network = stir(small(2, (24, 24), token_size=[token] * 2))
    x, conv = torch.randn(1, 1, 24, 24).double(), torch.nn.functional.conv2d
    embedded = conv(x, network.patch_embed.weight, network.patch_embed.bias, token)
    grid = embedded.shape[2:]
    tokens, after = embedded.flatten(2).mT + network.pos_embed, []
    for block in network.blocks:
        tokens = block(tokens)
        after.append(tokens.mT.unflatten(2, grid))
    skips = [raise_tokens(path, after[tap]) for path, tap in zip(network.skips, taps, strict=True)]
    bottom = torch.nn.functional.layer_norm(tokens, (96,), network.norm.weight, network.norm.bias, 1e-6)
    maps = [network.refine(x), *skips, bottom.mT.unflatten(2, grid)]
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    y = maps[-1]
    for number in reversed(range(len(skips))):
        y = network.ups[number](y, skips[number])
    if token == 12:  # 1.5 times the last grid
        larger = torch.nn.functional.interpolate(y, size=(24, 24), mode="bilinear", align_corners=False)
        y = conv(larger, network.last.conv.weight, network.last.conv.bias, padding=1)
        y = network.last.block(torch.cat([y, maps[0]], 1))
    else:
        y = network.last(y, maps[0])
    torch.testing.assert_close(network(x), conv(y, network.head.weight, network.head.bias))


def test_initial_values():
    torch.manual_seed(0)
    network = small(2, (24, 24), token_size=[12, 12])
    first = network.blocks[0].mlp.fc1
    assert first.weight.abs().max() <= (6 / (96 + 384)) ** 0.5  # xavier, uniform
    assert first.weight.std().item() == pytest.approx((2 / (96 + 384)) ** 0.5, rel=0.05)
    assert not first.bias.any()
    assert network.patch_embed.weight.std().item() == pytest.approx((2 / (96 + 144)) ** 0.5, rel=0.05)


def test_the_released_encoder_is_loaded(tmp_path):
    """Its names, without the class token; 2 x 2 positions for a grid of 4 x 4."""
    torch.manual_seed(0)
    source, network = small(2, (24, 24), token_size=[12, 12]), small(2, (48, 48), token_size=[12, 12])
    parts = ("patch_embed.", "blocks.", "norm.")
    state = {name: tensor for name, tensor in source.state_dict().items() if name.startswith(parts)}
    released = {f"module.encoder.{name.replace('embed.', 'embed.proj.')}": tensor for name, tensor in state.items()}
    extra = {"module.encoder.cls_token": torch.zeros(1, 1, 96), "module.decoder.norm.weight": torch.zeros(5)}
    table = torch.randn(1, 4, 96)
    torch.save({"state_dict": released | extra | {"module.encoder_pos_embed": table}}, tmp_path / "released.pt")
    rows = load_pretrained(network, tmp_path / "released.pt")
    assert {row.name for row in rows if row.status == "loaded"} == {*state, "pos_embed"}
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    larger = torch.nn.functional.interpolate(table.mT.reshape(1, 96, 2, 2), size=(4, 4), mode="bilinear")
    torch.testing.assert_close(network.pos_embed, larger.flatten(2).mT)
