"""Swin SMT: published sizes, shapes, where the experts are, the neighbours that are merged."""

import pytest
import torch
from autoseg.architectures.blocks.soft_moe import SoftMoE
from network_specs import count, make, make_spec, stir, to_first, to_last

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("swin_smt", make_spec(3, 6, patch=(128,) * 3, outputs=118))
        without = make("swin_smt", make_spec(3, 6, patch=(128,) * 3, outputs=118, moe_layers=0, residual_stages=True))
    assert count(network) == 170_783_560
    assert count(without) == 72_767_752
    assert network.spec.features == (48, 48, 96, 192, 384, 768)
    mixes = [[isinstance(block.mlp, SoftMoE) for block in stage.blocks] for stage in network.stages]
    assert mixes == [[False] * 2, [True] * 2, [True] * 2, [True] * 2]
    assert network.stages[1].blocks[0].mlp.count == 32
    assert [[block.shifted for block in stage.blocks] for stage in network.stages] == [[False, True]] * 4


def test_shapes_with_118_outputs():
    torch.manual_seed(0)
    network = make("swin_smt", make_spec(3, 6, patch=(64, 32, 32), outputs=118, base=8)).eval()
    x = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        features = network.encode(x)
        logits = network.decode(features)
    assert [feature.shape[1:3] for feature in features] == [
        (12, 64), (12, 32), (24, 16), (48, 8), (96, 4), (192, 2),
    ]  # fmt: skip
    assert logits.shape == (1, 118, 64, 32, 32)


def test_another_size_than_planned():
    network = make("swin_smt", make_spec(2, 4, patch=(32, 32), base=8)).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 24, 40)).shape == (1, 3, 24, 40)


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    network = make("swin_smt", make_spec(strides=strides, patch=(6, 32, 32), base=8)).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.randn(1, 1, 6, 32, 32))]
    assert shapes == [(6, 32, 32), (6, 16, 16), (6, 8, 8), (3, 4, 4)]


@pytest.mark.parametrize(("merging", "unseen"), [("swin_unetr", [(0, 1, 1), (1, 1, 0)]), ("all", [])])
def test_the_quirk_of_the_merging(merging, unseen):
    torch.manual_seed(0)
    merge = make("swin_smt", make_spec(3, 3, base=8, merging=merging)).stages[0].merge
    x = torch.randn(1, 2, 2, 2, 12)
    for offset in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        other = x.clone()
        other[(0, *offset)] *= -2
        same = torch.equal(merge(x), merge(other))
        assert same == (tuple(offset) in unseen)


def test_skips_are_normalised_and_the_trunk_is_not():
    torch.manual_seed(0)
    network = make("swin_smt", make_spec(2, 4, patch=(32, 32), base=8)).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        direct = network.encode(x)[2]  # the map before the last has no convolutions
        trunk = network.stages[0](network.embedding(x).movedim(1, -1))
    assert direct.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(direct.var(1, unbiased=False), torch.ones(1, 8, 8), rtol=0.01, atol=0.01)
    assert (trunk.var(-1, unbiased=False) - 1).abs().max() > 0.1


def test_sizes_follow_the_plan():
    kind = plugins.load("architecture", "swin_smt")
    assert kind.adapt_spec(make_spec(base=8)).options["feature_size"] == 12
    assert kind.adapt_spec(make_spec(base=8)).options["experts"] == 8
    assert kind.adapt_spec(make_spec(base=32, experts=4, feature_size=24)).features[:3] == (24, 24, 48)
    assert len(kind.adapt_spec(make_spec(stages=8, patch=(128,) * 3)).strides) == 6
    with pytest.raises(UserError, match="3 to 6 resolutions"):
        make("swin_smt", make_spec(stages=2))
    with pytest.raises(UserError, match="cannot take merging"):
        make("swin_smt", make_spec(merging="some"))


def test_step_by_step():
    """Embedding, residual entries, blocks, mergings, norms of the skips, joins and head."""
    torch.manual_seed(0)
    network = stir(make("swin_smt", make_spec(2, 4, patch=(32, 32), base=8, residual_stages=True, moe_layers=1)))
    x, conv, norm = torch.randn(1, 1, 32, 32).double(), torch.nn.functional.conv2d, torch.nn.functional.layer_norm
    tokens = to_last(conv(x, network.embedding.weight, network.embedding.bias, 2))
    maps = [x, to_first(norm(tokens, tokens.shape[-1:]))]
    for stage in network.stages:
        tokens = to_last(stage.entry(to_first(tokens)))
        for block in stage.blocks:
            tokens = tokens + block.attend(block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        parts = torch.cat([tokens[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
        tokens = torch.nn.functional.linear(stage.merge.norm(parts), stage.merge.reduction.weight)
        maps.append(to_first(norm(tokens, tokens.shape[-1:])))
    assert stage.merge.reduction.bias is None
    skips = [refine(skip) for refine, skip in zip(network.refine, maps, strict=True)]
    assert [type(refine).__name__ for refine in network.refine] == [*["ResidualBlock"] * 2, "Identity", "ResidualBlock"]
    for found, wanted in zip(network.encode(x), skips, strict=True):
        torch.testing.assert_close(found, wanted)
    y = skips[3]
    for level in (2, 1, 0):
        y = network.ups[level](y, skips[level])
    torch.testing.assert_close(network(x), conv(y, network.head.weight, network.head.bias))


def test_the_published_order_of_merged_neighbours():
    for merging, order in {"swin_unetr": "swin_unetr", "all": "last_fastest"}.items():
        assert make("swin_smt", make_spec(3, 3, base=8, merging=merging)).stages[0].merge.order == order


def test_drops_are_absent_and_the_mixture_is_global():
    network = make("swin_smt", make_spec(2, 4, patch=(32, 32), base=8))
    rates = {part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)}
    rates |= {block.drop_path.rate for stage in network.stages for block in stage.blocks}
    assert rates == {0.0}
    assert {block.norm1.eps for stage in network.stages for block in stage.blocks} == {1e-5}


@pytest.mark.parametrize("residual", [False, True])
def test_without_experts_it_is_swin_unetr_with_its_weights(tmp_path, residual):
    """MONAI's network; all neighbours are merged, as its versions differ in the quirk. No window shrinks here."""
    monai = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    torch.manual_seed(0)
    options = {"feature_size": 12, "window_size": 2, "use_v2": residual, "downsample": "mergingv2"}
    theirs = monai.SwinUNETR(in_channels=1, out_channels=3, **options).eval()
    for name, parameter in theirs.named_parameters():
        if "bias_table" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    options = {"moe_layers": 0, "window": 2, "residual_stages": residual, "merging": "all"}
    ours = make("swin_smt", make_spec(3, 6, patch=(32, 32, 64), base=8, **options)).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "swin.pt")
    assert {row.status for row in load_pretrained(ours, tmp_path / "swin.pt")} == {"loaded"}
    x = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_a_pretrained_encoder_starts_all_but_the_mixtures():
    names = {
        "patch_embed.proj.weight": "embedding.weight",
        "layers1.0.blocks.1.mlp.linear2.bias": "stages.0.blocks.1.mlp.fc2.bias",
        "layers4.0.blocks.0.attn.qkv.weight": "stages.3.blocks.0.attn.qkv.weight",
        "layers2.0.downsample.reduction.weight": "stages.1.merge.reduction.weight",
        "layers3c.0.layer.conv2.conv.weight": "stages.2.entry.convs.3.weight",
        "encoder10.layer.conv1.conv.weight": "refine.5.convs.0.weight",
        "decoder5.conv_block.conv3.conv.weight": "ups.4.block.skip.0.weight",
    }  # fmt: skip
    with torch.device("meta"):
        network = make("swin_smt", make_spec(3, 6, patch=(64,) * 3, residual_stages=True))
    weights = {**dict.fromkeys(names, torch.zeros(1)), "layers1.0.blocks.0.norm1.weight": torch.zeros(1), "mask": None}
    found = network.translate_weights(weights)
    assert found.keys() == {*names.values(), "stages.0.blocks.0.norm1.weight"}
    assert found.keys() <= network.state_dict().keys()
