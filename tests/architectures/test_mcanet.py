"""MCANet: published counts, cross-axis attention, sizes from the plan."""

from functools import cache

import pytest
import torch
from autoseg.architectures.blocks.mscan import Block, SpatialAttention
from autoseg.architectures.mcanet import CrossAxisAttention
from network_specs import count, make, make_spec

from autoseg.errors import UserError


@cache
def published():
    with torch.device("meta"):
        return make("mcanet", make_spec(2, 8, patch=(512, 512), channels=3, outputs=1))


def test_published_parameter_counts():
    network = published()
    assert count(network.stages) == 3_903_584
    assert count(network.head) == 143_817 - 8  # of temperatures that nothing uses
    assert count(network.head.attention) == 9_672 - 8
    assert count(network) == 4_047_401 - 8
    assert network.spec.features == (16, 32, 64, 160, 256)
    assert network.spec.strides == ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2))


def test_features_and_output():
    network = make("mcanet", make_spec(2, 6, patch=(128, 128), channels=3, outputs=1)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 3, 128, 128))
        assert network.head(features).shape == (1, 1, 32, 32)
        assert network(torch.zeros(1, 3, 96, 160)).shape == (1, 1, 96, 160)
        assert network.decode(features).shape == (1, 1, 128, 128)
    assert [tuple(feature.shape[1:]) for feature in features] == [(32, 32, 32), (64, 16, 16), (160, 8, 8), (256, 4, 4)]
    means = [feature.mean(1).abs().max() for feature in features]  # of a layer norm's channels
    assert max(means) < 1e-4


def attention(dims=2, width=16, heads=8, axes=None):
    torch.manual_seed(0)
    return CrossAxisAttention(dims, width, heads, axes or range(dims)).eval()


def test_transposing_the_image_and_the_strips_transposes_the_output():
    layer, x = attention(), torch.randn(2, 16, 12, 20)
    other = attention()
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        expected = layer(x).mT
        for targets, sources in zip(other.strips, reversed(layer.strips), strict=True):
            for target, source in zip(targets, sources, strict=True):
                target.weight.copy_(source.weight.mT)
                target.bias.copy_(source.bias)
        torch.testing.assert_close(other(x.mT), expected, atol=1e-6, rtol=1e-5)
        assert (layer(x.mT) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_without_the_projection_it_is_the_identity(dims):
    layer, x = attention(dims), torch.randn(2, 16, *range(4, 4 + dims))
    assert not torch.equal(layer(x), x)
    torch.nn.init.zeros_(layer.project.weight)
    torch.nn.init.zeros_(layer.project.bias)
    assert torch.equal(layer(x), x)


def matrices(layer, x):
    """Return weights, logits and values of all axes."""
    found = []
    sources = layer.sources(x)
    for number, axis in enumerate(layer.axes):
        query = sum(source for other, source in enumerate(sources) if other != number)
        q, k = (torch.nn.functional.normalize(layer.tokens(t, axis), dim=-1) for t in (query, sources[number]))
        found.append((layer.weights(q, k), q @ k.mT, layer.tokens(sources[number], axis)))
    return found


def test_shapes_and_range_of_the_attention():
    layer, x = attention(), torch.randn(2, 16, 12, 20)
    (rows, products, _), (columns, _, _) = matrices(layer, x)
    assert rows.shape == (2, 8, 12, 12)
    assert columns.shape == (2, 8, 20, 20)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 8, 12))
    assert products.abs().max() <= 1 + 1e-6
    assert (rows.amax(-1) / rows.amin(-1)).max() <= 2.71828183**2 + 1e-4


def test_queries_come_from_the_other_axis():
    layer, x = attention(), torch.randn(1, 16, 6, 8)
    assert [tuple(conv.kernel_size) for conv in layer.strips[0]] == [(1, 7), (1, 11), (1, 21)]
    (before, _, values), _ = matrices(layer, x)
    with torch.no_grad():
        layer.strips[1][0].weight.add_(0.5)
    (after, _, still), _ = matrices(layer, x)
    assert (before - after).abs().max() > 1e-4
    assert torch.equal(values, still)


def test_one_head_by_loops():
    layer, x = attention(width=4, heads=2), torch.randn(1, 4, 3, 5)
    a, b = (source[0] for source in layer.sources(x))
    total = x[0].clone()
    for own, query, axis in ((a, b, 1), (b, a, 2)):
        out = torch.zeros_like(x[0])
        for part in (slice(0, 2), slice(2, 4)):
            k, q = own[part].unbind(axis), query[part].unbind(axis)
            q = [t / t.norm() for t in q]
            for i, qi in enumerate(q):
                share = torch.stack([(qi * t / t.norm()).sum() for t in k]).softmax(0)
                mixed = sum(w * t for w, t in zip(share, k, strict=True)) + qi
                out[part].select(axis, i).copy_(mixed)
        total = total + layer.project(out[None])[0]
    torch.testing.assert_close(layer(x)[0], total)


def test_convolutional_attention_step_by_step():
    torch.manual_seed(0)
    layer, u = SpatialAttention(2, 4, (0, 1)), torch.randn(1, 4, 9, 9)
    z = torch.nn.functional.gelu(layer.enter[0](u))
    near = layer.near(z)
    total = near + sum(cascade[1](cascade[0](near)) for cascade in layer.strips)
    assert [tuple(conv.kernel_size) for conv in layer.strips[0]] == [(1, 7), (7, 1)]
    torch.testing.assert_close(layer(u), u + layer.leave(layer.mix(total) * z))


def test_the_block_by_definition():
    torch.manual_seed(0)
    block, x = Block(2, 4, 2, (0, 1), "batch", 0.0).double().eval(), torch.randn(1, 4, 9, 9).double()
    for parameter in (block.scale1, block.scale2, block.norm1.bias, block.norm2.bias):
        torch.nn.init.normal_(parameter)
    enter, near, _, leave = block.mlp
    y = x + block.scale1 * block.attention(block.norm1(x))
    hidden = torch.nn.functional.conv2d(enter(block.norm2(y)), near.weight, near.bias, padding=1, groups=8)
    torch.testing.assert_close(block(x), y + block.scale2 * leave(torch.nn.functional.gelu(hidden)))


def test_the_head_by_definition():
    torch.manual_seed(0)
    network = make("mcanet", make_spec(2, 4, patch=(32, 32), base=16)).double().eval()
    head, functional = network.head, torch.nn.functional
    for norm in (module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)):
        torch.nn.init.normal_(norm.bias)
    features = network.encode(torch.randn(1, 1, 32, 32).double())
    assert [feature.shape[1] for feature in features] == [16, 32, 80]

    def larger(x, size):
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def unit(layers, x):  # convolution, group norm, ReLU
        conv, norm, _ = layers
        x = functional.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2, groups=conv.groups)
        return torch.relu(functional.group_norm(x, norm.num_groups, norm.weight, norm.bias))

    y = unit(head.squeeze, torch.cat([larger(x, (16, 16)) for x in features[1:]], 1))
    y = torch.cat([head.attention(y), features[0]], 1)
    layers = list(head.refine)
    assert [layer.kernel_size for layer in layers[::3]] == [(3, 3), (1, 1)] * 2
    assert [layer.groups for layer in layers[::3]] == [48, 1, 80, 1]
    for start in range(0, 12, 3):
        y = unit(layers[start : start + 3], y)
    logits = head.out(unit(head.align, y))
    torch.testing.assert_close(head(features), logits)
    torch.testing.assert_close(network.decode(features), larger(logits, (32, 32)))


def test_the_stem_and_the_stages():
    torch.manual_seed(0)
    network = make("mcanet", make_spec(2, 5, patch=(64, 64), base=16)).eval()
    kinds = [type(layer).__name__ for layer in network.stages[0][0]]
    assert kinds == ["Conv2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d"]
    assert [type(layer).__name__ for layer in network.stages[1][0]] == ["Conv2d", "BatchNorm2d"]
    x = torch.randn(1, 1, 64, 64)
    first = network.stages[0](x)
    for found, wanted in zip(network.encode(x), (first, network.stages[1](first)), strict=False):
        torch.testing.assert_close(found, wanted)
    mlp = network.stages[2][1].mlp
    assert mlp[0].weight.std().item() == pytest.approx((2 / (4 * 80)) ** 0.5, rel=0.05)
    assert mlp[1].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert (mlp[0].bias == 0).all()


def test_drop_path_rises_and_scales_start_small():
    rates = [layer.drop_path.rate for stage in published().stages for layer in stage if isinstance(layer, Block)]
    assert len(rates) == 13
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.1)
    network = make("mcanet", make_spec(2, 3, patch=(16, 16), base=8))
    assert network.stages[0][-2].scale1.flatten().tolist() == pytest.approx([0.01] * 8)


def test_small_patches_have_a_stem_of_two():
    network = make("mcanet", make_spec(2, 4, patch=(32, 32), base=8))
    assert network.spec.strides == ((1, 1), (2, 2), (2, 2), (2, 2))
    assert [layer.stride for layer in network.stages[0][0] if hasattr(layer, "stride")] == [(1, 1), (2, 2)]
    assert make("mcanet", make_spec(2, 5, patch=(32, 32), base=8)).spec.strides == ((1, 1), *[(2, 2)] * 3)


def test_a_coarse_axis_keeps_its_size_and_is_not_mixed():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("mcanet", make_spec(strides=strides, patch=(8, 16, 16), base=8)).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.zeros(1, 1, 8, 16, 16))]
    assert shapes == [(8, 8, 8), (4, 4, 4)]
    assert network.head.attention.axes == (1, 2)
    assert len(network.head.attention.strips) == 2
    assert make("mcanet", make_spec(3, 3, patch=(16,) * 3, base=8)).head.attention.axes == (0, 1, 2)


def test_training_gives_one_output():
    network = make("mcanet", make_spec(2, 3, patch=(16, 16), base=8)).train()
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)


def test_sizes_and_options():
    with torch.device("meta"):
        network = make("mcanet", make_spec(2, 6, patch=(128, 128), size="B"))
    assert network.spec.features == (32, 64, 128, 320, 512)
    assert network.spec.blocks_encoder == (1, 3, 3, 12, 3)
    with pytest.raises(UserError, match="cannot take size"):
        make("mcanet", make_spec(2, 3, patch=(16, 16), size="t"))
    with pytest.raises(UserError, match="three resolutions"):
        make("mcanet", make_spec(2, 2, patch=(16, 16), base=8))
