"""SegMamba: sizes, the three scans, strides from the plan."""

import pytest
import torch
from autoseg.architectures import segmamba
from network_specs import count, make, make_spec, stir

from autoseg.errors import UserError


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("segmamba", make_spec(stages=6, patch=(128,) * 3, deep=False))
        with_heads = make("segmamba", make_spec(stages=6, patch=(128,) * 3))
    assert count(network) == 67_362_723
    assert count(network.stages[0].layers[0]) == 31_488
    assert count(network.stages[0].gsc) == 129_216
    assert count(with_heads) - count(network) == 3 * (96 + 192 + 384 + 3)
    assert len(network.stages) == 4
    assert network.spec.features == (48, 96, 192, 384, 768)


def test_shapes_at_32():
    network = make("segmamba", make_spec(stages=5, base=4)).eval()
    x = torch.zeros(1, 1, 32, 32, 32)
    with torch.no_grad():
        features = network.encode(x)
        assert network(x).shape == (1, 3, 32, 32, 32)
    assert [feature.shape[1:3] for feature in features] == [(6, 32), (12, 16), (24, 8), (48, 4), (96, 2)]


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6, 12])
def test_interleaving_and_its_inverse(slices):
    tokens = torch.randn(2, 12, 5)
    assert torch.equal(segmamba.separate(segmamba.interleave(tokens, slices), slices), tokens)


def test_interleaving_puts_slices_next_to_each_other():
    tokens = torch.arange(6.0).reshape(1, 6, 1)  # two slices: 0 1 2 and 3 4 5
    assert segmamba.interleave(tokens, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_without_the_projection_out_every_layer_is_the_identity():
    layer, x = segmamba.TriOrientedLayer(8), torch.randn(1, 8, 3, 4, 5)
    assert not torch.equal(layer(x), x)
    torch.nn.init.zeros_(layer.mamba.out_proj.weight)
    assert torch.equal(layer(x), x)


def silence(branch):
    """Let the branch give zero: no skip, and an output projection C of zero."""
    torch.nn.init.zeros_(branch.D)
    with torch.no_grad():
        branch.x_proj.weight[branch.split[0] + branch.split[1] :] = 0


def test_without_two_branches_the_layer_is_mamba():
    from autoseg.architectures.blocks.mamba import Mamba

    torch.manual_seed(0)
    ours, usual, tokens = segmamba.TriOrientedMamba(8), Mamba(8), torch.randn(2, 24, 8)
    silence(ours.backward_scan)
    silence(ours.slice_scan)
    usual.in_proj.load_state_dict(ours.in_proj.state_dict())
    usual.out_proj.load_state_dict(ours.out_proj.state_dict())
    usual.branch.load_state_dict(ours.forward_scan.state_dict())
    torch.testing.assert_close(ours(tokens, 4), usual(tokens))


def test_each_branch_has_its_direction():
    torch.manual_seed(0)
    tokens = torch.randn(1, 12, 8)
    other = tokens.clone()
    other[:, 7] += 1  # position 1 of the second slice of two
    for alone, reached in (
        ("forward_scan", range(7, 12)),
        ("backward_scan", range(8)),
        ("slice_scan", [*range(2, 6), *range(7, 12)]),
    ):
        layer = segmamba.TriOrientedMamba(8)
        for branch in {"forward_scan", "backward_scan", "slice_scan"} - {alone}:
            silence(getattr(layer, branch))
        changed = (layer(tokens, 2) - layer(other, 2)).abs().amax((0, 2)) > 1e-7
        assert changed.nonzero().flatten().tolist() == list(reached)


def test_instance_norms_have_no_parameters():
    network = make("segmamba", make_spec(stages=3, base=4))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.InstanceNorm3d)]
    assert len(norms) > 10
    assert not any(norm.state_dict() for norm in norms)


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("segmamba", make_spec(strides=strides, patch=(6, 16, 16), base=4)).eval()
    assert network.stages[0].down.kernel_size == (3, 7, 7)
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.zeros(1, 1, 6, 16, 16))]
    assert shapes == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]


def test_unknown_options_are_refused():
    with pytest.raises(UserError, match="has no option"):
        make("segmamba", make_spec(depth=3))


def test_the_width_option_wins():
    assert make("segmamba", make_spec(stages=3, width=5)).spec.features == (5, 10, 20)


def test_step_by_step():
    """Down-sampling, convolutions before the scans, skips, joins, last block and heads."""
    torch.manual_seed(0)
    network, x = stir(make("segmamba", make_spec(2, 3, patch=(16, 16), base=4))), torch.randn(2, 1, 16, 16).double()
    conv, norm = torch.nn.functional.conv2d, torch.nn.functional.instance_norm

    def unit(layers, y, padding):
        return torch.relu(norm(conv(y, layers[0].weight, layers[0].bias, padding=padding)))

    maps, y = [x], x
    for number, stage in enumerate(network.stages):
        if number == 0:
            y = conv(y, stage.down.weight, stage.down.bias, 2, 3)
        else:
            y = conv(norm(y), stage.down[1].weight, stage.down[1].bias, 2)
        wide = unit(stage.gsc.wide[3:], unit(stage.gsc.wide[:3], y, 1), 1)
        y = y + unit(stage.gsc.join, wide + unit(stage.gsc.narrow, y, 0), 0)
        for layer in stage.layers:
            tokens = layer.norm(y.flatten(2).mT)
            y = y + layer.mamba(tokens, y.shape[2]).mT.unflatten(2, y.shape[2:])
        _, first, _, second = stage.skip
        hidden = torch.nn.functional.gelu(conv(norm(y), first.weight, first.bias))
        maps.append(conv(hidden, second.weight, second.bias))
    maps = [refine(skip) for refine, skip in zip(network.refine, maps, strict=True)]
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    low = network.ups[1](maps[2], maps[1])
    last = network.last(network.ups[0](low, maps[0]))
    wanted = [conv(y, head.weight, head.bias) for head, y in zip(network.heads, (last, low), strict=True)]
    torch.testing.assert_close(network(x), wanted[0])
    for found, logits in zip(network.train()(x), wanted, strict=True):
        torch.testing.assert_close(found, logits)


def test_the_scans_are_added_before_the_projection_out():
    torch.manual_seed(0)
    layer, tokens = stir(segmamba.TriOrientedMamba(8)), torch.randn(2, 12, 8).double()
    x, z = torch.nn.functional.linear(tokens, layer.in_proj.weight).chunk(2, -1)
    order = torch.arange(12).reshape(3, 4).T.flatten()  # three slices of four
    y = layer.forward_scan(x, z) + layer.backward_scan(x.flip(1), z.flip(1)).flip(1)
    y = y + layer.slice_scan(x[:, order], z[:, order])[:, order.argsort()]
    torch.testing.assert_close(layer(tokens, 3), torch.nn.functional.linear(y, layer.out_proj.weight))
