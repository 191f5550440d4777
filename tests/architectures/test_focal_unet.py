"""Focal-UNet: published size, sizes from the plan, skips."""

import pytest
import torch
from autoseg.architectures.focal_unet import FocalUNet
from network_specs import count, make_spec

from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained


def make(spec):
    torch.manual_seed(0)
    return FocalUNet(FocalUNet.adapt_spec(spec))


def published(**options):
    with torch.device("meta"):
        return make(make_spec(2, stages=6, patch=(224, 224), channels=3, outputs=9, **options))


def test_published_parameter_counts():
    network = published()
    assert count(network) == 44_254_060 - 192
    assert [count(layer) for layer in network.layers] == [555_088, 2_142_352, 8_413_456, 28_618_768]
    assert [count(network.joins[s]) for s in (2, 1, 0)] == [295_296, 73_920, 18_528]
    decoder = [count(network.ups[2]), *(count(network.decoder[s]) + count(network.ups[s - 1]) for s in (2, 1))]
    assert decoder == [1_180_800, 2_103_364, 535_588]
    assert count(network.decoder[0]) == 120_196
    assert (count(network.patch_embed), count(network.head)) == (4_896, 42_336)


def test_even_depths_make_a_smaller_model():
    assert 25e6 < count(published(depths=[2, 2, 2, 2], decoder_depth=2)) < 32e6


def test_drop_path_rises_over_the_encoder():
    rates = [block.drop_path.rate for layer in published().layers for block in layer["blocks"]]
    assert rates == pytest.approx([0.2 * block / 15 for block in range(16)])
    assert [blocks[0].drop_path.rate for blocks in published().decoder] == pytest.approx(rates[:3])


def test_logits_at_224():
    network = make(make_spec(2, stages=6, patch=(224, 224), outputs=9, base=2)).eval()
    x = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        features = network.encode(x)
        assert network(x).shape == (1, 9, 224, 224)
    assert [tuple(feature.shape[1:]) for feature in features] == [(6, 56, 56), (12, 28, 28), (24, 14, 14), (48, 7, 7)]


def test_skips_are_the_inputs_of_the_stages():
    network, x = make(make_spec(2, stages=4, patch=(32, 32), base=4)).eval(), torch.randn(1, 1, 32, 32)
    skips = network.encode(x)
    torch.testing.assert_close(skips[0], network.patch_embed(x))
    network.layers[0]["blocks"] = torch.nn.Identity()
    assert torch.equal(network.encode(x)[0], skips[0])
    assert not torch.equal(network.encode(x)[1], skips[1])


def to_last(x):
    return x.permute(0, 2, 3, 1)


def to_first(x):
    return x.permute(0, 3, 1, 2)


def test_step_by_step():
    """Embedding, norms, joins and head around the blocks."""
    network, x = make(make_spec(2, stages=3, patch=(16, 16), base=4)).double().eval(), torch.randn(1, 1, 16, 16)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.bias)
    for layer in network.joins:
        torch.nn.init.normal_(layer.weight)
    x, conv, transposed = x.double(), torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
    embed, down, up = network.patch_embed, network.layers[0]["downsample"], network.ups[0]
    first = to_first(embed.norm(to_last(conv(x, embed.proj.weight, embed.proj.bias, 2))))
    y = to_first(network.layers[0]["blocks"](to_last(first)))
    y = to_first(down.norm(to_last(conv(y, down.proj.weight, down.proj.bias, 2))))
    y = to_first(network.norm(network.layers[1]["blocks"](to_last(y))))
    for found, wanted in zip(network.encode(x), (first, y), strict=True):
        torch.testing.assert_close(found, wanted)
    y = to_first(up.norm(to_last(transposed(y, up.proj.weight, up.proj.bias, 2))))
    y = network.last_norm(network.decoder[0](network.joins[0](to_last(torch.cat([y, first], 1)))))
    y = transposed(to_first(y), network.expand.weight, network.expand.bias, 2)
    assert network.head.bias is None
    torch.testing.assert_close(network(x), conv(y, network.head.weight, padding=3))


def test_initial_values():
    block = make(make_spec(2, stages=3, patch=(16, 16), base=16)).layers[1]["blocks"][0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (block.modulation.f.bias == 0).all()


def test_small_plans_have_small_patches_or_fewer_stages():
    strides = [FocalUNet.adapt_spec(make_spec(2, stages=n, patch=(64, 64))).strides for n in (8, 6, 5, 3)]
    assert strides == [
        ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2)),
        ((1, 1), (4, 4), (2, 2), (2, 2), (2, 2)),
        ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2)),
        ((1, 1), (2, 2), (2, 2)),
    ]


def test_other_sizes_than_the_planned_one():
    network = make(make_spec(2, stages=4, patch=(32, 32), base=2)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 24, 56)).shape == (1, 3, 24, 56)


def test_a_thin_axis():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    spec = make_spec(3, strides=strides, patch=(6, 32, 32), base=2).model_copy(update={"kernel_sizes": kernels})
    network = make(spec).eval()
    assert network.head.kernel_size == (1, 7, 7)
    found = [[layer[0].kernel_size for layer in stage["blocks"][0].modulation.focal_layers] for stage in network.layers]
    assert found == [
        [(1, 3, 3), (1, 5, 5), (1, 7, 7)],
        [(3, 3, 3), (5, 5, 5), (5, 7, 7)],
        [(3, 3, 3)] * 3,
    ]
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.zeros(1, 1, 6, 32, 32))]
    assert shapes == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]


def test_names_of_focalnet():
    names = set(make(make_spec(2, stages=3, patch=(16, 16), base=2)).state_dict())
    wanted = ["patch_embed.proj.weight", "layers.0.downsample.norm.bias", "norm.weight"]
    block = "layers.1.blocks.3."
    wanted += [block + name for name in ("norm1.weight", "modulation.f.bias", "modulation.h.weight", "mlp.fc2.weight")]
    assert names.issuperset([*wanted, block + "modulation.focal_layers.2.0.weight"])


def test_focalnets_weights_start_the_encoder(tmp_path):
    network = make(make_spec(2, stages=3, patch=(16, 16), base=2))
    theirs = {
        name: torch.randn(tensor.shape)
        for name, tensor in network.state_dict().items()
        if name.startswith(("patch_embed.", "layers.")) and "blocks.2." not in name and "blocks.3." not in name
    }
    torch.save({"model": theirs | {"head.weight": torch.zeros(1000, 8)}}, tmp_path / "focalnet.pth")
    rows = {row.name: row.status for row in load_pretrained(network, tmp_path / "focalnet.pth")}
    assert {name for name, status in rows.items() if status != "fresh"} == theirs.keys() - {"head.weight"}
    assert torch.equal(
        network.layers[1]["blocks"][1].modulation.h.weight, theirs["layers.1.blocks.1.modulation.h.weight"]
    )


def test_one_resolution_is_refused():
    with pytest.raises(UserError, match="two resolutions"):
        make(make_spec(2, stages=1, patch=(16, 16)))
