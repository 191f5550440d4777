"""HiFormer: published sizes, fusion that reaches the output, sums, sizes from the plan."""

import pytest
import torch
from autoseg.architectures.hiformer import HiFormer, Shorten, heads_for, resize_positions, stem_strides, window_for
from network_specs import count, make_spec

from autoseg.errors import UserError


def make(spec):
    torch.manual_seed(0)
    return HiFormer(HiFormer.adapt_spec(spec))


def at_224(size):
    with torch.device("meta"):
        return make(make_spec(2, stages=6, patch=(224, 224), channels=3, outputs=9, size=size))


def tiny(**options):
    return make(make_spec(2, stages=4, patch=(32, 32), base=4, **options)).eval()


@pytest.mark.parametrize(("size", "parameters"), [("s", 23_254_355), ("b", 25_512_115), ("l", 29_519_219)])
def test_published_parameter_counts(size, parameters):
    network = at_224(size)
    assert count(network) == parameters
    if size == "b":
        swin = count(network.swin) + count(network.merge)
        assert swin == 11_775_402 + 370_944
        assert count(network.cnn) == 8_543_296
        assert count(network.fusion) == 3_222_432
        assert count(network.fusion.layers) == 2_442_528
        assert count(network.positions) == 376_800
        coarse, decoder = count(network.decoder.coarse), network.decoder
        assert (coarse, count(decoder.fine)) == (590_336, 110_848)
        assert (count(decoder.reduce), count(decoder.head)) == (2_064, 1_305)


def test_logits_at_224():
    network = make(make_spec(2, stages=6, patch=(224, 224), channels=3, outputs=9, base=4)).eval()
    assert [stage.blocks[0].window for stage in network.swin] == [(7, 7)] * 3
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 3, 224, 224))
        assert network.decode(features).shape == (1, 9, 224, 224)
    assert [tuple(feature.shape[2:]) for feature in features] == [(56, 56), (14, 14)]


@pytest.mark.parametrize("dlf", ["active", "released"])
def test_the_fusion_reaches_the_output_only_where_active(dlf):
    network, x = tiny(dlf=dlf), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = network(x)
        for part in (network.fusion.cross[0].value, network.fusion.there[1][2], network.fusion.layers[1][0].mlp.fc2):
            part.weight.normal_()
            changed = not torch.equal(network(x), before)
            assert changed == (dlf == "active")
        for parameter in network.fusion.parameters():
            parameter.normal_()
        assert torch.equal(network(x), before) == (dlf == "released")
        network.positions[0].add_(torch.randn_like(network.positions[0]))
        assert not torch.equal(network(x), before)


def test_the_summary_of_one_level_informs_the_patches_of_the_other():
    fusion = tiny().fusion.double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fine, coarse = torch.randn(1, 65, 12).double(), torch.randn(1, 17, 48).double()
    other = coarse.clone()
    other[:, 3] = torch.randn(48)  # one coarse patch token
    with torch.no_grad():
        before, after = (fusion([fine, level], [(8, 8), (4, 4)]) for level in (coarse, other))
    assert ((after[0] - before[0]).abs().amax(-1) > 1e-12).all()


def test_the_fusion_by_definition():
    fusion = tiny().fusion.double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sequences = [torch.randn(2, 65, 12).double(), torch.randn(2, 17, 48).double()]
    assert [type(layer).__name__ for layer in fusion.there[0]] == ["LayerNorm", "GELU", "Linear"]
    assert [type(layer).__name__ for layer in fusion.back[0]] == ["LayerNorm", "GELU", "Linear"]
    for branch, found in enumerate(fusion(sequences, [(8, 8), (4, 4)])):
        own, other = sequences[branch], sequences[1 - branch]
        summary = fusion.there[branch](own[:, :1])
        joined = fusion.norms[branch](torch.cat([summary, other[:, 1:]], 1))
        tokens = torch.cat([fusion.back[branch](summary + fusion.cross[branch](joined)), own[:, 1:]], 1)
        for layer in fusion.layers[branch]:
            tokens = layer(tokens)
        torch.testing.assert_close(found, tokens)


def test_the_decoder_by_definition():
    decoder = tiny().decoder.double()
    fine, coarse = torch.randn(1, 12, 16, 16).double(), torch.randn(1, 48, 4, 4).double()

    def unit(layers, x):
        conv, norm, _ = layers
        x = torch.nn.functional.conv2d(x, conv.weight, padding=1)
        return torch.relu(torch.nn.functional.group_norm(x, 4, norm.weight, norm.bias))

    def double(x):
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    low = coarse
    for layers in decoder.coarse:
        low = double(unit(layers, low))
    y = torch.relu(decoder.reduce[0](unit(decoder.fine, fine) + low))
    wanted = torch.nn.functional.conv2d(double(y), decoder.head.weight, decoder.head.bias, padding=1)
    torch.testing.assert_close(decoder(fine, coarse), wanted)


def test_levels_are_normalised_and_lose_their_summary():
    network, x = tiny(dlf="released"), torch.randn(1, 1, 32, 32)
    for norm in network.norms:
        torch.nn.init.normal_(norm.bias)
    seen = []
    network.merge[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    fine = network.encode(x)[0]
    tokens = seen[0].flatten(1, 2) + network.positions[0][:, 1:]
    torch.testing.assert_close(fine.flatten(2).mT, network.norms[0](tokens))


def test_initial_values():
    network = make(make_spec(2, stages=4, patch=(32, 32), base=32)).eval()
    layer = network.fusion.layers[1][0]
    assert layer.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (layer.mlp.fc1.bias == 0).all()
    assert network.positions[0].std().item() == pytest.approx(0.02, rel=0.05)


def test_without_residual_branches_the_tokens_count_twice():
    network, x = tiny(), torch.randn(1, 1, 32, 32)
    for block in network.swin[0].blocks:
        for last in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    seen = []
    network.merge[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(x)
    torch.testing.assert_close(seen[0], 2 * network.project[0](network.cnn(x)[0]).movedim(1, -1))


def test_merging_order():
    from autoseg.architectures.blocks.patch_merging import space_to_channels

    merge = tiny().merge[0]
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    assert space_to_channels(square, merge.stride, merge.order).flatten().tolist() == [1, 3, 2, 4]


def test_summaries_are_means_of_normalised_tokens():
    network, level = tiny(), torch.randn(1, 16, 16, 12)
    sequence = network._sequence(0, level) - network.positions[0]
    wanted = torch.nn.functional.layer_norm(level, (12,)).mean((1, 2))
    torch.testing.assert_close(sequence[:, 0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sequence[:, 1:], level.flatten(1, 2))


def test_drop_path_rises():
    rates = [block.drop_path.rate for stage in at_224("s").swin for block in stage.blocks]
    assert rates == pytest.approx([0.1 * number / 9 for number in range(10)])


def test_strides_of_stem_and_pooling():
    assert stem_strides((4, 4)) == ((2, 2), (2, 2))
    assert stem_strides((2, 2)) == ((2, 2), None)
    assert stem_strides((2, 4, 4)) == ((1, 2, 2), (2, 2, 2))
    assert stem_strides((1, 4, 4)) == ((1, 2, 2), (1, 2, 2))


def test_small_patches_are_not_quartered_at_once():
    strides = [
        HiFormer.adapt_spec(make_spec(2, stages=n, patch=(e, e))).strides for n, e in ((6, 128), (5, 96), (3, 16))
    ]
    assert strides == [((1, 1), (4, 4), (2, 2), (2, 2)), ((1, 1), (2, 2), (2, 2), (2, 2)), ((1, 1), (2, 2), (2, 2))]


def test_windows():
    assert [window_for(edge, 2) for edge in (56, 16, 20, 12, 9, 2)] == [7, 8, 5, 6, 7, 7]
    assert [window_for(edge, 3) for edge in (56, 16, 20, 12, 9, 2)] == [7, 4, 5, 6, 4, 4]


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_heads_of_the_fusion(size):
    heads = [[layer.attention.heads for layer in layers] for layers in at_224(size).fusion.layers]
    assert heads == {"s": [[3], [3]], "b": [[6], [12, 12]], "l": [[6], [6] * 4]}[size]
    assert [heads_for(24, 6), heads_for(48, 12), heads_for(12, 6)] == [1, 3, 1]


def test_positions_are_interpolated():
    table = torch.randn(1, 1 + 16, 3)
    assert resize_positions(table, (4, 4), (4, 4)) is table
    larger = resize_positions(table, (4, 4), (6, 8))
    assert larger.shape == (1, 49, 3)
    assert torch.equal(larger[:, 0], table[:, 0])
    flat = torch.ones(1, 17, 3)
    torch.testing.assert_close(resize_positions(flat, (4, 4), (6, 8)), torch.ones(1, 49, 3))
    with torch.no_grad():
        assert tiny()(torch.zeros(1, 1, 40, 24)).shape == (1, 3, 40, 24)


def test_many_tokens_are_averaged_for_keys_and_values():
    tokens = torch.cat([torch.full((1, 1, 2), 9.0), torch.arange(8.0).reshape(1, 4, 2)], 1)
    assert Shorten((2, 2), (1, 2))(tokens).tolist() == [[[9, 9], [1, 2], [5, 6]]]
    network, other = tiny(max_tokens=4), tiny()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert network(x).shape == (1, 3, 32, 32)
        assert not torch.allclose(network(x), other(x))


def test_a_coarse_axis():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2))
    network = make(make_spec(3, strides=strides, patch=(4, 16, 24), base=4)).eval()
    assert not any("conv3" in name for name in network.cnn.state_dict())
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 4, 16, 24))
        assert network.decode(features).shape == (1, 3, 4, 16, 24)
    assert [tuple(feature.shape[2:]) for feature in features] == [(4, 8, 12), (2, 2, 3)]


def test_what_makes_no_sense_is_refused():
    for spec, text in ((make_spec(2, stages=2, patch=(8, 8)), "levels"), (make_spec(2, width=10), "multiple")):
        with pytest.raises(UserError, match=text):
            make(spec)
