"""D-Former: published sizes, heads of three resolutions, skips, strides and groups from the plan."""

import pytest
import torch
from network_specs import count, make, make_spec

from autoseg.errors import UserError

PUBLISHED = ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4)  # patches of 2x4x4, three mergings


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("d_former", make_spec(strides=PUBLISHED, patch=(64, 128, 128), outputs=14))
        single = make("d_former", make_spec(strides=PUBLISHED, patch=(64, 128, 128), outputs=14, deep=False))
    assert network.spec.strides == ((1, 1, 1), (2, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert network.spec.features == (96, 96, 192, 384, 768)
    heads = [count(head) for head in network.heads]
    assert heads == [296_448, 1_182_720, 4_724_736]
    assert count(network) == 50_557_248
    assert count(network) - sum(heads) == 44_353_344
    assert count(single) == 44_649_792
    merges = [*(count(merge) for merge in network.merges), 0]
    stages = [count(stage) for stage in network.encoder]
    assert [a + b for a, b in zip(stages, merges, strict=True)] == [375_360, 1_488_000, 13_022_976, 14_197_248]
    assert [count(join) for join in network.joins] == [18_528, 73_920, 295_296]
    decoder = [count(stage) for stage in network.decoder]
    expands = [count(expand) for expand in network.expands]
    assert expands[2] == 2_360_064
    assert decoder[2] + expands[1] == 11_247_744
    assert decoder[1] + expands[0] == 1_042_752
    assert decoder[0] == 226_368
    assert [stage.blocks.blocks[0].attn.heads for stage in network.encoder] == [3, 6, 12, 24]
    assert [len(stage.blocks.blocks) for stage in network.decoder] == [2, 2, 6]


def test_outputs_at_full_half_and_quarter_resolution():
    torch.manual_seed(0)
    network = make("d_former", make_spec(strides=PUBLISHED, patch=(16, 64, 64), outputs=14, base=8)).train()
    x = torch.randn(1, 1, 16, 64, 64)
    with torch.no_grad():
        shapes = [tuple(output.shape) for output in network(x)]
        assert network.eval()(x).shape == (1, 14, 16, 64, 64)
        features = network.encode(x)
    assert shapes == [(1, 14, 16, 64, 64), (1, 14, 8, 32, 32), (1, 14, 4, 16, 16)]
    assert network.output_weights() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert [feature.shape[1:3] for feature in features] == [(24, 8), (48, 4), (96, 2), (192, 1)]


def test_skips_are_the_inputs_of_the_stages():
    torch.manual_seed(0)
    network = make("d_former", make_spec(2, 4, patch=(32, 32), base=8)).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        skips = network.encode(x)[:-1]
        torch.testing.assert_close(skips[0], network.embed_norm(network.embed(x).movedim(1, -1)).movedim(-1, 1))
        for stage in network.encoder:  # what the stages do not change before the last
            stage.position.weight.zero_()
            stage.position.bias.zero_()
        assert torch.equal(network.encode(x)[0], skips[0])
        assert not torch.equal(network.encode(x)[1], skips[1])


def test_positions_come_from_the_convolution_alone():
    """Without it, blocks on one group of tokens are equivariant to any permutation of them."""
    torch.manual_seed(0)
    stage = make("d_former", make_spec(2, 4, base=8)).encoder[0]
    x, order = torch.randn(1, 8, 8, 24), torch.randperm(64)
    shuffled = x.flatten(1, 2)[:, order].unflatten(1, (8, 8))
    with torch.no_grad():
        wanted = stage(x).flatten(1, 2)[:, order].unflatten(1, (8, 8))
        assert not torch.allclose(stage(shuffled), wanted)
        stage.position.weight.zero_()
        wanted = stage(x).flatten(1, 2)[:, order].unflatten(1, (8, 8))
        torch.testing.assert_close(stage(shuffled), wanted)


def test_step_by_step():
    """Embedding, norms, mergings, joins and head around the blocks."""
    torch.manual_seed(0)
    network = make("d_former", make_spec(2, 3, patch=(16, 16), base=8, group=[4, 4])).double().eval()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.bias)
    for join in network.joins:
        torch.nn.init.normal_(join.weight)
    x, conv = torch.randn(1, 1, 16, 16).double(), torch.nn.functional.conv2d

    def run(stage, tokens):
        position = conv(tokens.permute(0, 3, 1, 2), stage.position.weight, stage.position.bias, padding=1, groups=width)
        return stage.blocks(tokens + position.permute(0, 2, 3, 1))

    width = 24
    skip = network.embed_norm(conv(x, network.embed.weight, network.embed.bias, 2).permute(0, 2, 3, 1))
    y, merge = run(network.encoder[0], skip), network.merges[0]
    y = torch.cat([y[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)  # (0, 0), (0, 1), (1, 0), (1, 1)
    width, y = 48, torch.nn.functional.linear(merge.norm(y), merge.reduction.weight)
    y = network.bottom_norm(run(network.encoder[1], y))
    for found, wanted in zip(network.encode(x), (skip, y), strict=True):
        torch.testing.assert_close(found, wanted.permute(0, 3, 1, 2))
    width, y = 24, network.joins[0](torch.cat([network.expands[0](y), skip], -1))
    y = network.last_norm(run(network.decoder[0], y))
    head = network.heads[0]
    torch.testing.assert_close(network(x), conv(head.expand(y).permute(0, 3, 1, 2), head.conv.weight))
    assert head.conv.bias is None
    assert head.expand.expand.out_features == 4 * 24


def test_another_size_than_planned():
    torch.manual_seed(0)
    network = make("d_former", make_spec(2, 4, patch=(32, 32), base=8)).eval()
    groups = [block.attn.group for stage in network.encoder for block in stage.blocks.blocks]
    with torch.no_grad():
        for size in ((8, 8), (72, 40), (8, 8)):
            assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)
    assert groups == [block.attn.group for stage in network.encoder for block in stage.blocks.blocks]
    assert set(groups) == {(8, 8)}


@pytest.mark.parametrize(
    ("strides", "wanted"),
    [
        (((1, 1, 1), *[(2, 2, 2)] * 3), ((2, 2, 2), (2, 2, 2), (2, 2, 2))),  # hippocampus
        (((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 2, 2), (2, 2, 2))),
        (((1, 1, 1), *[(1, 2, 2)] * 2, *[(2, 2, 2)] * 3), ((1, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2))),
        (((1, 1, 1), *[(2, 2, 2)] * 5), ((4, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2))),
        (((1, 1), *[(2, 2)] * 7), ((4, 4), (2, 2), (2, 2), (2, 2))),
    ],
)  # fmt: skip
def test_stages_follow_the_plan(strides, wanted):
    with torch.device("meta"):
        network = make("d_former", make_spec(len(strides[0]), strides=strides))
    assert network.spec.strides[1:] == wanted
    assert network.spec.options["token_size"] == list(wanted[0])
    merged = [
        merge.norm.normalized_shape[0] // width for merge, width in zip(network.merges, (96, 192, 384), strict=False)
    ]
    assert merged == [torch.tensor(stride).prod().item() for stride in wanted[1:]]


def test_initial_values():
    torch.manual_seed(0)
    network = make("d_former", make_spec(2, 3, base=16))
    linear = network.encoder[0].blocks.blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (linear.bias == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"group": [8]}, "group must have 2"), ({"depths": [2]}, "depths must have 3"), ({"heads": 3}, "no option")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make("d_former", make_spec(2, 4, **options))
