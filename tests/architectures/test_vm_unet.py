"""VM-UNet: published sizes, additive skips, stages and patches from the plan."""

import pytest
import torch
from network_specs import count, make, make_spec, stir, to_first, to_last

from autoseg.errors import UserError


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("vm_unet", make_spec(2, 6, patch=(256, 256), channels=3, outputs=1))
        whole = make("vm_unet", make_spec(2, 8, patch=(512, 512), channels=3, outputs=1))
        deep = make("vm_unet", make_spec(2, 6, channels=3, outputs=1, depths=[2, 2, 9, 2], decoder_depths=[2, 9, 2, 2]))
    assert count(network) == count(whole) == 27_427_561
    assert 44.2e6 < count(deep) < 44.3e6
    assert count(network.encoder[0][0]) == 105_408
    assert count(network.embed) + count(network.embed_norm) == 4_896
    assert count(network.last_expand) == 36_912
    assert count(network.head) == 25
    assert network.spec.strides == ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2))
    assert network.spec.features == (96, 96, 192, 384, 768)


def test_stochastic_depth_rises_and_falls():
    with torch.device("meta"):
        network = make("vm_unet", make_spec(2, 6))
    encoder = [block.drop_path.rate for stage in network.encoder for block in stage]
    decoder = [block.drop_path.rate for stage in network.decoder for block in stage]
    assert encoder == pytest.approx([0.2 * i / 7 for i in range(8)])
    assert decoder == pytest.approx([0.2 * i / 6 for i in reversed(range(7))])
    assert [len(stage) for stage in network.decoder] == [2, 2, 2, 1]


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_shapes_in_2d(size):
    torch.manual_seed(0)
    network = make("vm_unet", make_spec(2, 6, patch=(64, 64), outputs=4, base=4)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, *size))
        assert network.decode(features).shape == (1, 4, *size)
    scales = [8, 16, 32, 32]
    assert [feature.shape[1:] for feature in features] == [
        (width, size[0] // scale, size[1] // scale) for width, scale in zip((24, 48, 96, 96), scales, strict=True)
    ]


def test_a_volume_with_a_coarse_axis():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    network = make("vm_unet", make_spec(strides=strides, patch=(6, 32, 32), base=4)).eval()
    assert network.spec.strides == ((1, 1, 1), (1, 4, 4), (2, 2, 2))
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 6, 32, 32))
        assert network.decode(features).shape == (1, 3, 6, 32, 32)
    assert [tuple(feature.shape[2:]) for feature in features] == [(3, 4, 4), (3, 4, 4)]


@pytest.mark.parametrize(
    ("stages", "patch", "wanted"),
    [(2, None, (2,)), (3, None, (2, 2)), (4, None, (4, 2)), (4, [2, 2], (2, 2, 2)), (9, None, (4, 2, 2, 2))],
)
def test_stages_and_patches_follow_the_plan(stages, patch, wanted):
    options = {} if patch is None else {"token_size": patch}
    with torch.device("meta"):
        network = make("vm_unet", make_spec(2, stages, **options))
    assert network.spec.strides[1:] == tuple((step, step) for step in wanted)
    assert network.spec.options["token_size"] == [wanted[0]] * 2


def test_skips_are_added():
    torch.manual_seed(0)
    network = make("vm_unet", make_spec(2, 5, patch=(32, 32), base=4)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 32, 32))
        whole = network.decode(features)
        for number in range(len(features) - 1):
            without = [torch.zeros_like(f) if i == number else f for i, f in enumerate(features)]
            assert (network.decode(without) - whole).abs().max() > 1e-4
        # the deepest skip is added to the deepest stage's output: moving it from one to the other changes nothing
        network.decoder[0] = torch.nn.Identity()
        moved = [*features[:-2], torch.zeros_like(features[-2]), features[-2] + features[-1]]
        torch.testing.assert_close(network.decode(moved), network.decode(features))


def test_initial_values():
    torch.manual_seed(0)
    network = make("vm_unet", make_spec(2, 4, base=16))
    block = network.encoder[0][0]
    assert block.mix.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.merges[0].reduction.weight.std().item() == pytest.approx(0.02, rel=0.05)
    steps = torch.nn.functional.softplus(block.mix.scans.dt_bias)  # the pass over linear layers leaves them
    assert 0.0009 < steps.min() < steps.max() < 0.11
    assert block.mix.scans.x_proj.std() > 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "no option"),
        ({"depths": [2]}, "depths must have 2 entries"),
        ({"token_size": [3, 3]}, "make no patches"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make("vm_unet", make_spec(2, 4, **options))


def test_one_resolution_is_refused():
    with pytest.raises(UserError, match="two resolutions"):
        make("vm_unet", make_spec(2, 1))


def expand(layer, tokens, step):
    """By definition: Linear, its parts put row-major into the block of their token, norm."""
    batch, rows, columns, _ = tokens.shape
    parts = torch.nn.functional.linear(tokens, layer.expand.weight).reshape(batch, rows, columns, step, step, -1)
    return layer.norm(parts.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * step, columns * step, -1))


def test_step_by_step():
    """Embedding, mergings, skips, expansions and head around the blocks."""
    torch.manual_seed(0)
    network = stir(make("vm_unet", make_spec(2, 5, patch=(32, 32), base=4)))
    x, conv = torch.randn(1, 1, 32, 32).double(), torch.nn.functional.conv2d
    y = network.embed_norm(to_last(conv(x, network.embed.weight, network.embed.bias, 4)))
    inputs = []
    for stage, merge in zip(network.encoder, (*network.merges, None), strict=True):
        inputs.append(y)
        y = stage(y)
        if merge is not None:
            parts = torch.cat([y[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)  # (0,0), (1,0), (0,1), (1,1)
            y = torch.nn.functional.linear(merge.norm(parts), merge.reduction.weight)
    for found, wanted in zip(network.encode(x), (*inputs[1:], y), strict=True):
        torch.testing.assert_close(to_last(found), wanted)
    y = network.decoder[0](y)
    y = network.decoder[1](expand(network.expands[0], y + inputs[2], 2))
    y = network.decoder[2](expand(network.expands[1], y + inputs[1], 2))
    y = to_first(expand(network.last_expand, y, 4))
    torch.testing.assert_close(network(x), conv(y, network.head.weight, network.head.bias))
    assert {norm.eps for norm in network.modules() if isinstance(norm, torch.nn.LayerNorm)} == {1e-5}
    assert all(block.mlp is None and block.mix.gated for stage in network.encoder for block in stage)
