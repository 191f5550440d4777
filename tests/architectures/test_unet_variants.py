"""The UNet variants: published counts, blocks, gates, sizes from the plan."""

import math
from functools import cache

import pytest
import torch
from autoseg.architectures.unet_variants import ConvBlock, ResidualBlock
from network_specs import count, make, make_spec

from autoseg.errors import UserError
from autoseg.losses import focal_loss

NAMES = ("unet", "res_unet", "attention_unet", "att_res_unet")


@cache
def published(name, channels=3):
    with torch.device("meta"):
        return make(name, make_spec(2, 5, outputs=1, channels=channels, deep=False, paper_widths=True))


def test_published_parameter_counts():
    assert count(published("unet")) == 31_390_723
    assert count(published("att_res_unet")) == 39_068_871
    assert count(published("res_unet", 1)) == 33_139_267
    assert round(count(published("attention_unet")) / 1e6, 1) == 37.3


@pytest.mark.parametrize(("name", "total"), [("unet", 31_402_501), ("att_res_unet", 39_090_377)])
def test_published_totals_with_running_statistics(name, total):
    network = published(name)
    running = sum(buffer.numel() for key, buffer in network.named_buffers() if "running" in key)
    assert count(network) + running == total


def test_residual_blocks_add_their_projections():
    network = published("unet")
    blocks = [*network.encoder, *network.decoder]
    pairs = [(block.layers[0].in_channels, block.layers[0].out_channels) for block in blocks]
    assert pairs[:2] == [(3, 64), (64, 128)]
    assert pairs[5:] == [(192, 64), (384, 128), (768, 256), (1536, 512)]
    assert count(published("res_unet")) - count(network) == sum(i * o + o + 2 * o for i, o in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_at_base_8(name):
    network = make(name, make_spec(2, 5, patch=(64, 96), outputs=4, base=8)).train()
    x = torch.zeros(2, 1, 64, 96)
    with torch.no_grad():
        outputs = network(x)
        assert network.eval()(x).shape == (2, 4, 64, 96)
        assert network(torch.zeros(2, 1, 50, 70)).shape == (2, 4, 50, 70)  # no multiple of 16
    assert [tuple(output.shape[2:]) for output in outputs] == [(64, 96), (32, 48), (16, 24), (8, 12)]
    assert network.spec.features == (16, 32, 64, 128, 256)


def test_widths_stop_at_the_usual_limit():
    assert make("unet", make_spec(2, 6, base=16, patch=(32, 32))).spec.features == (32, 64, 128, 256, 512, 512)
    with torch.device("meta"):
        assert make("unet", make_spec(3, 6)).spec.features == (32, 64, 128, 256, 320, 320)
        assert make("unet", make_spec(2, 6, paper_widths=True)).spec.features[-1] == 2048


def test_a_sixth_level_is_the_deep_layer():
    deep = make("unet", make_spec(2, 3, base=1, levels=4))
    assert deep.spec.features == (2, 4, 8, 16)
    assert deep.spec.strides == ((1, 1), (2, 2), (2, 2), (2, 2))
    assert type(deep).patch_multiple(deep.spec) == (8, 8)
    assert make("unet", make_spec(2, 4, base=1, levels=2)).spec.strides == ((1, 1), (2, 2))


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("att_res_unet", make_spec(strides=strides, patch=(6, 16, 16), base=4)).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.zeros(1, 1, 6, 16, 16))]
    assert shapes == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]
    assert [gate.from_skip.kernel_size for gate in network.gates] == [(1, 2, 2), (2, 2, 2)]
    assert network.options["norm"] == "instance"
    assert network.spec.features == (4, 8, 16)


def zero_second_norm(block):
    norm = [layer for layer in block.layers if isinstance(layer, torch.nn.BatchNorm2d)][1]
    torch.nn.init.zeros_(norm.weight)
    torch.nn.init.zeros_(norm.bias)


def test_a_silent_residual_block_is_its_projection():
    torch.manual_seed(0)
    block, x = ResidualBlock(3, 3, (3, 3), "batch", 0.0).eval(), torch.randn(2, 3, 5, 5)
    assert not torch.allclose(block(x), torch.relu(block.skip(x)))
    zero_second_norm(block)
    assert torch.equal(block(x), torch.relu(block.skip(x)))
    assert [type(layer).__name__ for layer in block.skip] == ["Conv2d", "BatchNorm2d"]


def test_order_of_the_layers():
    kinds = [type(layer).__name__ for layer in ConvBlock(1, 2, (3, 3), "batch", 0.1).layers]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["Dropout"]
    kinds = [type(layer).__name__ for layer in ResidualBlock(1, 2, (3, 3), "batch", 0.1).layers]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "Dropout"]


def test_gates_are_driven_by_the_decoder_and_up_sampling_starts_from_it():
    """The second gate sees the signal of the decoder map, not of the encoder map of its level."""
    torch.manual_seed(0)
    network = make("attention_unet", make_spec(2, 3, patch=(16, 16), base=4, deep=False)).double().eval()
    for gate in network.gates:
        torch.nn.init.normal_(gate.score.weight)  # so that gates differ from place to place
    with torch.no_grad():
        skip, middle, bottom = network.encode(torch.randn(1, 1, 16, 16).double())
        gated = network.gates[1](middle, network.signals[1](bottom))
        low = network.decoder[1](torch.cat([bottom.repeat_interleave(2, 2).repeat_interleave(2, 3), gated], 1))
        gated = network.gates[0](skip, network.signals[0](low))
        top = network.decoder[0](torch.cat([low.repeat_interleave(2, 2).repeat_interleave(2, 3), gated], 1))
        torch.testing.assert_close(network.decode([skip, middle, bottom]), network.heads[0](top))
    assert [type(layer).__name__ for layer in network.signals[0]] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert network.signals[0][0].kernel_size == (1, 1)


def test_resolution_falls_by_the_maximum():
    torch.manual_seed(0)
    network = make("res_unet", make_spec(2, 3, patch=(16, 16), base=2)).eval()
    with torch.no_grad():
        first, second, _ = network.encode(torch.randn(1, 1, 16, 16))
        torch.testing.assert_close(second, network.encoder[1](first.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))))


def test_the_norm_of_the_logits_can_be_left_out():
    kinds = {}
    for options in ({}, {"logit_bn": False}, {"norm": "instance"}):
        head = make("unet", make_spec(2, 2, base=2, **options)).heads[0]
        kinds[str(options)] = [type(layer).__name__ for layer in head.modules()]
    assert list(kinds.values()) == [["Sequential", "Conv2d", "BatchNorm2d"], ["Conv2d"], ["Conv2d"]]


@pytest.mark.parametrize(
    ("share", "gamma", "wanted"), [(0.5, 2.0, 0.173287), (0.5, 0.0, 0.693147), (0.9, 2.0, 0.00105361)]
)
def test_the_focal_loss_of_the_comparison(share, gamma, wanted):
    logits = torch.tensor([[[math.log(share)], [math.log(1 - share)]]])
    assert focal_loss(logits, torch.zeros(1, 1), gamma=gamma).item() == pytest.approx(wanted, rel=1e-5)


def test_one_level_is_a_network():
    network = make("att_res_unet", make_spec(2, 1, patch=(8, 8), base=2)).eval()
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("options", [{"norm": "group"}, {"depth": 2}])
def test_unknown_options_are_told(options):
    with pytest.raises(UserError, match="UNet"):
        make("unet", make_spec(2, 3, base=2, **options))
