"""xLSTM-UNet: sizes, where the Vision-LSTM layers stand, what their tokens are."""

import pytest
import torch
from autoseg.architectures.blocks.vision_lstm import VisionLSTM
from autoseg.architectures.xlstm_unet import ChannelTokens, PatchTokens, ResidualUnit
from network_specs import count, make, make_spec

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
