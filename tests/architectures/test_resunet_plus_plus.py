"""ResUNet++: published counts, order of the layers, attention without sigmoid, dilations from the plan."""

from functools import cache

import pytest
import torch
from autoseg.architectures.resunet_plus_plus import ChannelwiseAttention, ResidualUnit
from network_specs import count, make, make_spec

from autoseg.errors import UserError


@cache
def published():
    with torch.device("meta"):
        spec = make_spec(2, 4, patch=(256, 256), channels=3, outputs=1, deep=False)
        return make("resunet_plus_plus", spec)


def test_published_parameter_counts():
    network = published()
    assert count(network) == 4_062_993
    assert [count(unit) for unit in network.encoder] == [2_960, 14_848, 58_880, 234_496]
    assert count(network.bridge) == 1_248_512
    assert [count(step) for step in network.decoder] == [118_880, 473_792, 1_891_712]
    assert count(network.aspp) == 18_896
    assert count(network.heads) == 17


def test_the_published_dilations_fit_256():
    for name in ("bridge", "aspp"):
        branches = getattr(published(), name).branches
        assert [branch[0].dilation for branch in branches] == [(1, 1), (6, 6), (12, 12), (18, 18)]


def dilations(layer):
    return [branch[0].dilation for branch in layer.branches]


def test_dilations_follow_the_plan_or_the_paper():
    network = make("resunet_plus_plus", make_spec(2, 4, patch=(128, 64), base=4))
    assert dilations(network.bridge) == [(1, 1), (3, 2), (6, 3), (9, 4)]  # 4.5 is rounded to even
    assert dilations(network.aspp) == [(1, 1), (6, 6), (12, 12), (18, 18)]
    network = make("resunet_plus_plus", make_spec(2, 4, patch=(16, 64), base=4))
    assert dilations(network.aspp) == [(1, 1), (6, 6), (12, 12), (1, 18)]
    network = make("resunet_plus_plus", make_spec(2, 4, patch=(16, 64), base=4, aspp_scale="paper"))
    assert dilations(network.bridge) == dilations(network.aspp) == [(1, 1), (6, 6), (12, 12), (18, 18)]


def test_shapes():
    network = make("resunet_plus_plus", make_spec(2, 4, patch=(128, 96), channels=3, outputs=1, base=16))
    x = torch.zeros(1, 3, 128, 96)
    with torch.no_grad():
        outputs = network.train()(x.expand(2, -1, -1, -1))
        features = network.eval().encode(x)
        assert network(x).shape == (1, 1, 128, 96)
        assert network(torch.zeros(1, 3, 45, 63)).shape == (1, 1, 45, 63)
    assert [tuple(output.shape[2:]) for output in outputs] == [(128, 96), (64, 48), (32, 24)]
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (8, 128, 96),
        (16, 64, 48),
        (32, 32, 24),
        (128, 16, 12),
    ]


def test_order_of_the_layers():
    kinds = [type(layer).__name__ for layer in ResidualUnit(4, 8, (2, 2), "batch").layers]
    assert kinds == ["BatchNorm2d", "ReLU", "Conv2d"] * 2
    kinds = [type(layer).__name__ for layer in ResidualUnit(4, 8, (1, 1), "batch", stem=True).layers]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]


def test_there_is_no_activation_after_the_sum():
    torch.manual_seed(0)
    unit, x = ResidualUnit(4, 8, (2, 2), "batch").eval(), torch.randn(1, 4, 8, 8)
    total = unit.layers(x) + unit.skip(x)
    scale = unit.excite.scale(total)
    assert (total < 0).any()
    torch.testing.assert_close(unit(x), total * scale[:, :, None, None])


@pytest.mark.parametrize("bias", [1.0, 0.0])
def test_attention_has_no_sigmoid(bias):
    torch.manual_seed(0)
    layer, skip, x = ChannelwiseAttention(3, 5, (2, 2), "batch"), torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    torch.nn.init.zeros_(layer.score[-1].weight)
    torch.nn.init.constant_(layer.score[-1].bias, bias)
    assert torch.equal(layer(skip, x), bias * x)


def test_attention_step_by_step():
    torch.manual_seed(0)
    layer, skip, x = (
        ChannelwiseAttention(3, 5, (1, 2), "batch").eval(),
        torch.randn(1, 3, 4, 8),
        torch.randn(1, 5, 4, 4),
    )
    conv, relu = torch.nn.functional.conv2d, torch.relu

    def unit(layers, y):
        return conv(relu(layers[0](y)), layers[2].weight, layers[2].bias, padding=1)

    pooled = torch.nn.functional.max_pool2d(unit(layer.from_skip, skip), (1, 2))
    expected = unit(layer.score, pooled + unit(layer.from_below, x)) * x
    torch.testing.assert_close(layer(skip, x), expected)


def test_step_by_step():
    """Bridge, decoder and the way to the output around the units."""
    torch.manual_seed(0)
    network = make("resunet_plus_plus", make_spec(2, 3, patch=(16, 16), base=8)).double().eval()
    x = torch.randn(1, 1, 16, 16).double()
    first = network.encoder[0](x)
    second = network.encoder[1](first)
    y = network.bridge(network.encoder[2](second))
    for found, wanted in zip(network.encode(x), (first, second, y), strict=True):
        torch.testing.assert_close(found, wanted)
    for step, skip in ((network.decoder[1], second), (network.decoder[0], first)):
        y = step.attention(skip, y).repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = step.unit(torch.cat([y, skip], 1))
    torch.testing.assert_close(network(x), network.heads[0](network.aspp(y)))


def test_initial_values():
    torch.manual_seed(0)
    layer = make("resunet_plus_plus", make_spec(2, 3, patch=(16, 16), base=64)).encoder[2].excite.reduce
    assert layer.weight.shape == (16, 128)
    assert layer.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)  # He's, normal


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("resunet_plus_plus", make_spec(strides=strides, patch=(6, 16, 16), base=8)).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.zeros(1, 1, 6, 16, 16))]
    assert shapes == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]
    assert network.options["norm"] == "instance"
    assert dilations(network.aspp) == [(1, 1, 1), (1, 6, 6), (1, 12, 12), (1, 1, 1)]


@pytest.mark.parametrize("stages", [1, 2, 7])
def test_any_number_of_stages(stages):
    network = make("resunet_plus_plus", make_spec(2, stages, patch=(64, 64), base=4, deep=False)).eval()
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)


def test_options():
    assert make("resunet_plus_plus", make_spec(2, 3, base=2, **{"norm": "instance"})).spec.options["base"] == 1
    with pytest.raises(UserError, match="aspp_scale"):
        make("resunet_plus_plus", make_spec(2, 3, base=2, aspp_scale="none"))
