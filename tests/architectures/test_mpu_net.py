"""MPU-Net: published counts, means of probabilities, gates, the two convolutions at the bottom, sizes from the plan."""

import pytest
import torch
from network_specs import count, make, make_spec
from torch import nn
from torch.nn import functional

from autoseg.errors import UserError

NAME = "mpu_net"
PUBLISHED = make_spec(3, 4, patch=(16, 32, 24), outputs=2)


def small(**options):
    torch.manual_seed(0)
    return make(NAME, make_spec(3, 3, patch=(8, 8, 8), **({"base": 8} | options)))


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make(NAME, PUBLISHED)
        channels = make(NAME, make_spec(3, 4, patch=(16, 32, 24), outputs=2, channels=2))
    assert count(network) == 21_507_255
    assert network.spec.features == (16, 32, 64, 128)
    assert [conv.out_channels for conv in convolutions(network.downs)] == [32, 64, 128, 256, 512]
    assert [conv.kernel_size for conv in convolutions(network.downs)] == [(2, 2, 2)] * 3 + [(3, 3, 3)] * 2
    assert [head.in_channels for head in network.heads] == [32, 64, 128, 256]
    assert count(channels) - count(network) == 27 * 16 + 2 * 16  # the first convolution, and the projection


def convolutions(module):
    return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]


def test_shapes_and_probabilities():
    torch.manual_seed(0)
    network = make(NAME, make_spec(3, 4, patch=(16, 32, 24), outputs=2, base=8))
    x = torch.randn(1, 1, 16, 32, 24)
    with torch.no_grad():
        outputs = network.train()(x)
        logits = network.eval()(x)
    assert logits.shape == (1, 2, 16, 32, 24)
    assert (logits < 0).all()
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, 16, 32, 24))  # they are logarithms of probabilities
    assert [tuple(output.shape) for output in outputs] == [(1, 2, 16, 32, 24)] * 4
    mean, *lower = (output.softmax(1) for output in outputs)
    finest = 4 * mean - sum(lower)
    assert finest.min() > -1e-5
    assert finest.max() < 1 + 1e-5
    torch.testing.assert_close(finest.sum(1), torch.ones(1, 16, 32, 24))


def test_the_mean_step_by_step():
    network = small().eval()
    x = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        features = network.encode(x)
        assert [tuple(feature.shape[1:3]) for feature in features] == [(4, 8), (8, 4), (16, 2), (32, 2)]
        bottom = network.decoder[2](features[2]) + features[3]
        third = network.gates[2](bottom, features[3])
        up = network.ups[1](third)
        second = network.gates[1](network.decoder[1](torch.cat([up, features[1]], 1)) + up, up)
        up = network.ups[0](second)
        first = network.gates[0](network.decoder[0](torch.cat([up, features[0]], 1)) + up, up)
        maps = [head(each) for head, each in zip(network.heads, (first, second, third), strict=True)]
        maps = [functional.interpolate(each, (8, 8, 8), mode="trilinear", align_corners=False) for each in maps]
        mean = sum(each.softmax(1) for each in maps) / 3
        torch.testing.assert_close(network(x).softmax(1), mean)


def test_outputs_in_training_are_the_mean_and_the_lower_levels_from_fine_to_coarse():
    network, x = small(dropout=0.0, norm="instance").train(), torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        mean, _, coarsest = network(x)
        *_, skip, bottom = network.encode(x)
        third = network.heads[2](network.gates[2](network.decoder[2](skip) + bottom, bottom))
        expected = functional.interpolate(third, (8, 8, 8), mode="trilinear", align_corners=False)
        torch.testing.assert_close(coarsest, expected)
        torch.testing.assert_close(mean, network.eval()(x))
    assert network.output_weights() == pytest.approx([1 / 1.8, 0.4 / 1.8, 0.4 / 1.8])


def test_the_encoder_step_by_step():
    network = small().eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        first = network.encoder[0](x) + x  # the one image channel is added to all
        pool, conv, norm, act = network.downs[0]
        below = act(norm(conv(functional.max_pool3d(first, 3, 1, 1))))
        second = network.encoder[1](below) + below
        features = network.encode(x)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((2, 2, 2), (2, 2, 2), (0, 0, 0))
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 1, 1)
    torch.testing.assert_close(features[0], first)
    torch.testing.assert_close(features[1], second)
    assert [type(layer) for layer in network.encoder[0]] == [nn.Conv3d, nn.PReLU] * 2
    assert [type(layer) for layer in network.decoder[0]] == [nn.Conv3d, nn.PReLU] * 3
    assert network.encoder[1][1].num_parameters == 8


def test_several_channels_are_projected_into_the_first_residual():
    network = small(channels=2).eval()
    x = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.encode(x)[0], network.encoder[0](x) + network.enter(x))
    assert network.enter.bias is None


def test_attention_starts_as_the_identity():
    network = small().eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        before = network(x)
        attention = network.attention[3]
        assert attention.gamma == 0
        assert attention.query.out_channels == 32 // 8
        nn.init.ones_(attention.gamma)
        assert not torch.allclose(network(x), before, atol=1e-4)


def test_open_gates_leave_the_plain_decoder():
    network = small().eval()
    for gate in network.gates:
        nn.init.zeros_(gate.score[1].weight)
        nn.init.constant_(gate.score[1].bias, 20.0)
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        features = network.encode(x)
        y, outputs = network.decoder[2](features[2]) + features[3], []
        for level in (2, 1, 0):
            if level < 2:
                up = network.ups[level](y)
                y = network.decoder[level](torch.cat([up, features[level]], 1)) + up
            outputs.append(functional.interpolate(network.heads[level](y), (8, 8, 8), mode="trilinear").softmax(1))
        torch.testing.assert_close(network(x).exp(), sum(outputs) / 3)


def test_dropout_acts_in_training_only_and_not_on_the_finest_level():
    network = small(norm="instance").train()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        one, other = network.encode(x), network.encode(x)
        assert torch.equal(one[0], other[0])
        assert (one[1] == 0).float().mean().item() == pytest.approx(0.2, abs=0.05)
        assert not torch.equal(one[1], other[1])
        network.eval()
        assert torch.equal(network(x), network(x))
        assert torch.equal(small(norm="instance", dropout=0.0).train()(x)[0], small(norm="instance", dropout=0.0)(x)[0])
    with pytest.raises(UserError, match="dropout"):
        small(dropout=1.0)


def test_slope_of_the_elu():
    assert {part.alpha for part in small().modules() if isinstance(part, nn.ELU)} == {1.0}
    parity = small(elu_alpha="channels")
    assert [part.alpha for part in parity.modules() if isinstance(part, nn.ELU)] == [8.0, 16.0, 32.0, 64.0]
    assert count(parity) == count(small())


def test_initialisation():
    network = small(base=32)
    conv = network.encoder[1][2]
    deviation = (2 / (1 + 0.25**2) / (conv.in_channels * 27)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(deviation, rel=0.03)
    assert all((conv.bias == 0).all() for conv in convolutions(network) if conv.bias is not None)
    assert {float(part.weight.detach().unique()) for part in network.modules() if isinstance(part, nn.PReLU)} == {0.25}


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make(NAME, make_spec(strides=strides, patch=(4, 16, 16), base=8)).eval()
    with torch.no_grad():
        x = torch.zeros(1, 1, 4, 16, 16)
        sizes = [tuple(feature.shape[2:]) for feature in network.encode(x)]
        assert sizes == [(4, 16, 16), (4, 8, 8), (2, 4, 4), (2, 4, 4)]
        assert network(x).shape == (1, 3, 4, 16, 16)


def test_widths_and_levels():
    with torch.device("meta"):
        deep = make(NAME, make_spec(2, 7, patch=(256, 256)))
        cut = make(NAME, make_spec(2, 7, patch=(256, 256), levels=4))
    assert deep.spec.features == (16, 32, 64, 128, 256, 512, 512)
    assert deep.attention[0].in_channels == deep.attention[0].out_channels == 512
    assert cut.spec.features == (16, 32, 64, 128)
    assert cut.patch_multiple(cut.spec) == (8, 8)


def test_regions_need_means_of_logits():
    assert not small().takes_regions()
    assert small(mean="logits").takes_regions()
    single = small(outputs=1).eval()
    assert single.takes_regions()
    with torch.no_grad():
        x = torch.randn(1, 1, 8, 8, 8)
        outputs = small(mean="logits", norm="instance", dropout=0.0).train()(x)
        logits = small(mean="logits", norm="instance").eval()(x)
        torch.testing.assert_close(outputs[0], logits)
        assert (logits > 0).any()


def test_impossible_classes_have_finite_logits():
    network = small().eval()
    for head in network.heads:
        nn.init.constant_(head.bias, 0.0)
        with torch.no_grad():
            head.bias[0] = 1000.0
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 8, 8, 8))
    assert logits.isfinite().all()
    assert logits.min().item() == pytest.approx(-16.118, abs=1e-3)  # the logarithm of 1e-7
