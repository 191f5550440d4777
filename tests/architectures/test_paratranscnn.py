"""ParaTransCNN: published size, resolutions, order of tokens, both encoders matter, sizes from the plan."""

import logging

import pytest
import torch
from autoseg.architectures.blocks.telling import tell
from autoseg.architectures.paratranscnn import Layer, ParaTransCNN
from network_specs import count, make_spec

from autoseg.errors import UserError


def make(spec):
    torch.manual_seed(0)
    return ParaTransCNN(ParaTransCNN.adapt_spec(spec))


def small(dims=2, **options):
    return make_spec(dims, stages=4, patch=(32,) * dims, base=4, **options)


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make(make_spec(2, stages=6, patch=(224, 224), channels=3, outputs=9))
    assert count(network) == 245_468_937
    assert [count(part) for part in network.transformers] == [2_465_280, 9_845_760, 39_352_320]
    assert [count(part) for part in network.embeddings] == [15_680, 819_840, 3_278_080]
    assert count(network.cnn) == 21_284_672
    assert [count(part) for part in network.excite] == [25_088, 100_352, 401_408]
    assert [count(network.convs[level]) for level in "210"] == [57_813_504, 57_813_504, 32_522_112]
    assert [count(network.ups[level]) for level in "210"] == [6_423_424, 6_423_424, 6_881_600]
    assert count(network.head) == 2_889
    assert network.options["heads"] == 8


def test_logits_of_the_middle_size():
    spec = make_spec(2, stages=5, patch=(96, 64), channels=3, outputs=2, dim=160, cnn_width=64, depth=1)
    network = make(spec).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 96, 64)).shape == (1, 2, 96, 64)


def test_the_resnet_has_no_pooling():
    network = make(make_spec(2, stages=6, patch=(224, 224), base=1, depth=1)).eval()
    with torch.no_grad():
        maps = network.cnn(torch.zeros(1, 1, 224, 224))
        features = network.encode(torch.zeros(1, 1, 224, 224))
    assert [tuple(found.shape[2:]) for found in maps] == [(112,) * 2, (56,) * 2, (28,) * 2, (14,) * 2]
    assert [tuple(found.shape[2:]) for found in features] == [(56,) * 2, (28,) * 2, (14,) * 2]


def test_tokens_have_no_positions():
    network, tokens, order = make(small()).eval(), torch.randn(1, 20, 40), torch.randperm(20)
    transformer = network.transformers[0]
    torch.testing.assert_close(transformer(tokens[:, order]), transformer(tokens)[:, order])


def test_the_layer_by_definition():
    torch.manual_seed(0)
    layer, tokens = Layer(16, 2, 0.1).eval(), torch.randn(1, 5, 16)
    assert layer.attention.qkv.bias is None
    assert layer.mlp.fc1.out_features == 32
    middle = tokens + layer.attention(layer.norm_attention(tokens))
    torch.testing.assert_close(layer(tokens), middle + layer.mlp(layer.norm_mlp(middle)))
    layer.train()
    for parts in ((layer.branch_dropout,), (layer.attention.dropout,)):  # either drops the attention's whole branch
        for module in layer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = float(module in parts)
        torch.testing.assert_close(layer(tokens), tokens + layer.mlp(layer.norm_mlp(tokens)))
    assert [Layer(16, 2, 0.1).branch_dropout.p, Layer(16, 2, 0.1).mlp.drop.p] == [0.1, 0.1]


@pytest.mark.parametrize("encoder", ["cnn", "transformers"])
def test_both_encoders_matter(encoder):
    network, x = make(small()).eval(), torch.randn(1, 1, 32, 32)
    before = network(x)
    parts = [network.cnn.layer1, network.cnn.layer2, network.cnn.layer3] if encoder == "cnn" else network.transformers
    for part in parts:
        part.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    after = network(x)
    assert after.isfinite().all()
    assert (after - before).abs().max() > 1e-4
    assert after.std() > 1e-4


def test_step_by_step():
    """Both encoders, their fusion and the decoder around convolutions and transformers."""
    spec = make_spec(2, stages=5, patch=(32, 32), base=4, depth=1)
    network, x = make(spec).double().eval(), torch.randn(1, 1, 32, 32).double()
    maps, y, fused = network.cnn(x), x, []
    for level in range(3):
        embed = network.embeddings[level]
        y = torch.nn.functional.conv2d(y, embed.weight, embed.bias, (4, 2, 2)[level])
        size = y.shape[2:]
        y = network.transformers[level](y.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
        joined = torch.cat([y, maps[1 + level]], 1)
        fused.append(joined * network.excite[level].scale(joined)[..., None, None])
    for found, wanted in zip(network.encode(x), fused, strict=True):
        torch.testing.assert_close(found, wanted)
    y = network.ups["2"](network.convs["2"](fused[2]))
    y = network.ups["1"](network.convs["1"](torch.cat([fused[1], y], 1)))
    y = network.ups["0"](network.convs["0"](torch.cat([fused[0], y], 1)))
    torch.testing.assert_close(network(x), network.head(y))
    assert [network.ups[level].stride for level in "210"] == [(2, 2), (2, 2), (4, 4)]


def test_zero_weights_halve_every_channel():
    excite = make(small()).excite[0]
    x = torch.randn(1, excite.reduce.in_features, 4, 4)
    scale = excite.scale(x)
    assert 0 < scale.min() < scale.max() < 1
    torch.nn.init.zeros_(excite.expand.weight)
    torch.testing.assert_close(excite(x), x / 2)


def test_many_tokens_move_the_fusion_deeper(caplog):
    tell.cache_clear()
    with caplog.at_level(logging.INFO, "autoseg.architectures.paratranscnn"):
        network = make(make_spec(2, stages=6, patch=(64, 64), base=1, max_tokens=100, depth=1)).eval()
    assert caplog.messages == [
        "paratranscnn: the first transformer works at strides (8, 8), so that it has fewer tokens"
    ]
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 64, 64))
        assert network.decode(features).shape == (1, 3, 64, 64)
    assert [tuple(found.shape[2:]) for found in features] == [(8, 8), (4, 4), (2, 2)]


def test_small_plans_start_at_their_second_resolution():
    network = make(make_spec(2, stages=3, patch=(16, 16), base=4)).eval()
    with torch.no_grad():
        shapes = [tuple(found.shape[2:]) for found in network.encode(torch.zeros(1, 1, 16, 16))]
    assert shapes == [(8, 8), (4, 4)]


def test_a_coarse_axis_and_another_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2))
    network = make(make_spec(3, strides=strides, patch=(4, 16, 16), base=4)).eval()
    with torch.no_grad():
        shapes = [tuple(found.shape[2:]) for found in network.encode(torch.zeros(1, 1, 4, 16, 16))]
        assert network(torch.zeros(1, 1, 6, 24, 16)).shape == (1, 3, 6, 24, 16)
    assert shapes == [(4, 8, 8), (2, 4, 4), (2, 2, 2)]
    norms = {type(m) for m in network.modules() if isinstance(m, torch.nn.modules.instancenorm._InstanceNorm)}
    assert norms == {torch.nn.InstanceNorm3d}


def test_widths_and_heads_follow_the_plan():
    options = [ParaTransCNN.adapt_spec(make_spec(dims, base=base)).options for dims, base in ((2, 8), (2, 16), (3, 32))]
    assert [(o["dim"], o["heads"], o["cnn_width"]) for o in options] == [(80, 4, 16), (160, 8, 32), (96, 4, 64)]


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="do not divide"):
        make(small(dim=24, heads=5))


def test_one_resolution_is_refused():
    with pytest.raises(UserError, match="two resolutions"):
        ParaTransCNN(make_spec(2, stages=1, patch=(16, 16), dim=8, cnn_width=4))
