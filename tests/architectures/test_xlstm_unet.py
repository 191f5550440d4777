"""xLSTM-UNet: sizes, where the Vision-LSTM layers stand, what their tokens are."""

import pytest
import torch
from autoseg.architectures.blocks.vision_lstm import VisionLSTM
from autoseg.architectures.xlstm_unet import ChannelTokens, PatchTokens, ResidualUnit
from network_specs import count, make, make_spec, stir

from autoseg.errors import UserError


def test_published_parameter_counts_without_the_unused_norms():
    with torch.device("meta"):
        enc = make("xlstm_unet", make_spec(stages=6, patch=(128,) * 3))
        bot = make("xlstm_unet", make_spec(stages=6, patch=(128,) * 3, variant="bot"))
    assert count(enc) == 43_697_095 - 2 * (256 + 320 + 64)
    assert count(bot) == 42_088_247 - 2 * 320


def test_block_counts():
    spec = make("xlstm_unet", make_spec(2, 6, base=2)).spec
    assert (spec.blocks_encoder, spec.blocks_decoder) == ((2, 2, 2, 1, 1, 1), (2, 2, 2, 1, 1))


def kinds(network):
    names = {PatchTokens: "patch", ChannelTokens: "channel", ResidualUnit: "convs", torch.nn.Identity: "none"}
    return [names[type(mixer)] for mixer in network.mixers]


def test_where_the_layers_stand():
    with torch.device("meta"):
        in_3d = make("xlstm_unet", make_spec(3, 6, patch=(128,) * 3))
        seven = make("xlstm_unet", make_spec(2, 7, patch=(512,) * 2))
        six = make("xlstm_unet", make_spec(2, 6, patch=(512,) * 2))
        bot = make("xlstm_unet", make_spec(2, 4, variant="bot"))
    assert kinds(in_3d) == ["convs", "convs", "convs", "patch", "patch", "channel"]
    assert kinds(seven) == ["none", "convs", "patch", "none", "patch", "none", "channel"]
    assert kinds(six) == ["none", "convs", "none", "patch", "none", "channel"]
    assert kinds(bot) == ["none", "none", "none", "patch"]


def test_the_hippocampus_plan():
    network = make("xlstm_unet", make_spec(stages=4, patch=(40, 56, 40)))
    (layer,) = [mixer for mixer in network.mixers if isinstance(mixer, ChannelTokens)]
    assert layer.positions == 5 * 7 * 5 == 175
    assert not any(isinstance(mixer, PatchTokens) for mixer in network.mixers)
    small = make("xlstm_unet", make_spec(stages=4, patch=(40, 56, 40), base=4)).train()
    shapes = [tuple(output.shape) for output in small(torch.zeros(1, 1, 40, 56, 40))]
    assert shapes == [(1, 3, 40, 56, 40), (1, 3, 20, 28, 20), (1, 3, 10, 14, 10)]


@pytest.mark.parametrize("patch", [(16, 16, 16), (64, 64, 64)])
def test_without_the_projection_down_it_is_the_residual_unet(patch):
    torch.manual_seed(0)
    network = make("xlstm_unet", make_spec(stages=4, patch=patch, base=2)).eval()
    layers = [module for module in network.modules() if isinstance(module, VisionLSTM)]
    assert layers
    x = torch.randn(1, 1, *patch)
    with torch.no_grad():
        before = network(x)
        for layer in layers:
            torch.nn.init.zeros_(layer.mix.down.weight)
        after = network(x)
        for stage, mixer in enumerate(network.mixers):
            if isinstance(mixer, (PatchTokens, ChannelTokens)):
                network.mixers[stage] = torch.nn.Identity()
        assert not torch.equal(before, after)
        assert torch.equal(network(x), after)


def test_2d_networks_have_no_skip_at_full_resolution():
    network = make("xlstm_unet", make_spec(2, 3, base=4)).eval()
    features = network.encode(torch.randn(1, 1, 32, 32))
    logits = network.decode(features)
    assert torch.equal(network.decode([features[0] + 1, *features[1:]]), logits)
    assert not torch.equal(network.decode([features[0], features[1] + 1, features[2]]), logits)
    deep = make("xlstm_unet", make_spec(3, 3, patch=(8, 8, 8), base=4)).eval()
    features = deep.encode(torch.randn(1, 1, 8, 8, 8))
    assert not torch.equal(deep.decode([features[0] + 1, *features[1:]]), deep.decode(features))


def test_projections_use_no_strided_convolution():
    """oneDNN's breaks the memory of the process, see strided_projection."""
    for module in make("xlstm_unet", make_spec(2, 3, base=4)).modules():
        if isinstance(module, torch.nn.Conv2d) and max(module.kernel_size) == 1:
            assert max(module.stride) == 1


def test_another_patch_than_planned():
    planned = make("xlstm_unet", make_spec(2, 4, patch=(32, 32), base=4, variant="bot")).eval()
    assert planned(torch.zeros(1, 1, 64, 32)).shape == (1, 3, 64, 32)
    tied = make("xlstm_unet", make_spec(2, 4, patch=(32, 32))).eval()
    with pytest.raises(UserError, match="16 positions"):
        tied(torch.zeros(1, 1, 64, 32))


def test_wrong_options_are_refused():
    for options in ({"variant": "middle"}, {"size": "S"}):
        with pytest.raises(UserError, match="variant"):
            make("xlstm_unet", make_spec(**options))


@pytest.mark.parametrize("dims", [2, 3])
def test_step_by_step(dims):
    """Residual units, mixers between stages, up-sampling, joins and heads."""
    torch.manual_seed(0)
    edges = (16, 16) if dims == 2 else (8, 16, 8)
    network = stir(make("xlstm_unet", make_spec(dims, 4, patch=edges, base=4)))
    x = torch.randn(2, 1, *edges).double()
    conv = (torch.nn.functional.conv2d, torch.nn.functional.conv3d)[dims - 2]

    def unit(block, y, stride=1):
        first, norm1, _, second, norm2 = block.convs
        leaky, norm = torch.nn.functional.leaky_relu, torch.nn.functional.instance_norm
        inner = leaky(norm(conv(y, first.weight, first.bias, stride, 1), weight=norm1.weight, bias=norm1.bias), 0.01)
        inner = norm(conv(inner, second.weight, second.bias, padding=1), weight=norm2.weight, bias=norm2.bias)
        if not isinstance(block.skip, torch.nn.Identity):
            y = conv(y, block.skip.weight, block.skip.bias, stride)
        return leaky(inner + y, 0.01)

    def stage(blocks, y, stride=1):
        assert [isinstance(block.skip, torch.nn.Identity) for block in blocks] == [n > 0 for n in range(len(blocks))]
        for number, block in enumerate(blocks):
            y = unit(block, y, 1 if number else stride)
        return y

    y, maps = stage(network.stem, x), []
    for number, (blocks, mixer) in enumerate(zip(network.stages, network.mixers, strict=True)):
        y = stage(blocks, y, 2 if number else 1)
        y = unit(mixer, y) if isinstance(mixer, ResidualUnit) else mixer(y)
        maps.append(y)
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    logits = []
    for level in (2, 1, 0):
        larger = y
        for axis in range(2, 2 + dims):
            larger = larger.repeat_interleave(2, axis)
        y = conv(larger, network.ups[level].weight, network.ups[level].bias)
        if dims == 3 or level:
            y = torch.cat([y, maps[level]], 1)
        y = stage(network.decoders[level], y)
        logits.insert(0, conv(y, network.heads[level].weight, network.heads[level].bias))
    torch.testing.assert_close(network(x), logits[0])
    for found, wanted in zip(network.train()(x), logits, strict=True):
        torch.testing.assert_close(found, wanted)


def test_tokens_of_positions_and_of_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 4).double()
    patches, channels = stir(PatchTokens(6)), stir(ChannelTokens(12))
    torch.testing.assert_close(patches(x), patches.block(x.flatten(2).mT).mT.reshape(x.shape))
    torch.testing.assert_close(channels(x), channels.block(x.flatten(2)).reshape(x.shape))
