"""LightM-UNet: sizes of the released code, the Mamba layer, pooling, strides and widths from the plan."""

import pytest
import torch
from autoseg.architectures import lightm_unet
from network_specs import count, make, make_spec

from autoseg.errors import UserError


def test_parameter_counts_of_the_released_code():
    with torch.device("meta"):
        network = make("lightm_unet", make_spec(3, 6, patch=(128,) * 3))
        flat = make("lightm_unet", make_spec(2, 6, patch=(512,) * 2))
    assert count(network) == 5_015_766
    assert 5_000_000 < count(flat) < 5_015_766
    assert count(network.entry) == 59
    stages = [count(stage) for stage in network.stages]
    downs = [0, *(count(down) for down in network.downs)]
    assert [a + b for a, b in zip(stages, downs, strict=True)] == [22_210, 160_325, 575_109, 4_186_377]
    assert count(network.head) == 227
    assert [len(stage) for stage in network.stages] == [1, 2, 2, 4]
    assert network.spec.features == (32, 64, 128, 256)


def test_shapes_at_16():
    torch.manual_seed(0)
    network = make("lightm_unet", make_spec(3, 4, patch=(16,) * 3, base=8)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 16, 16, 16))
        assert network.decode(features).shape == (1, 3, 16, 16, 16)
        assert network(torch.randn(1, 1, 8, 24, 16)).shape == (1, 3, 8, 24, 16)
    assert [feature.shape[1:3] for feature in features] == [(8, 16), (16, 8), (32, 4), (64, 2)]


def test_one_norm_is_used_twice():
    torch.manual_seed(0)
    layer, x = lightm_unet.MambaLayer(8, 4), torch.randn(2, 8, 3, 4)
    norms = [name for name, module in layer.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms == ["norm"]
    calls = []
    layer.norm.register_forward_hook(lambda *_: calls.append(1))
    layer(x)
    assert len(calls) == 2


def test_the_layer_by_its_definition():
    torch.manual_seed(0)
    layer, x = lightm_unet.MambaLayer(8, 4), torch.randn(2, 8, 3, 4)
    with torch.no_grad():
        layer.scale.fill_(0.7)
    tokens = x.permute(0, 2, 3, 1).reshape(2, 12, 8)
    wanted = layer.project(layer.norm(layer.mamba(layer.norm(tokens)) + 0.7 * tokens))
    torch.testing.assert_close(layer(x), wanted.reshape(2, 3, 4, 4).permute(0, 3, 1, 2))


def test_the_residual_block_by_its_definition():
    torch.manual_seed(0)
    block, x = lightm_unet.ResidualMamba(8, 4), torch.randn(2, 8, 3, 4)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.bias)
    y = block.mix1(torch.relu(torch.nn.functional.group_norm(x, 4, block.norm1.weight, block.norm1.bias)))
    y = block.mix2(torch.relu(torch.nn.functional.group_norm(y, 4, block.norm2.weight, block.norm2.bias)))
    torch.testing.assert_close(block(x), x + y)


def test_step_by_step():
    torch.manual_seed(0)
    network = make("lightm_unet", make_spec(2, 3, patch=(8, 8), base=8)).eval()
    entry, x = network.entry, torch.randn(1, 1, 8, 8)
    y = torch.nn.functional.conv2d(x, entry[0].weight, padding=1)
    first = network.stages[0](torch.nn.functional.conv2d(y, entry[1].weight))
    second = network.stages[1](network.downs[0](first))
    third = network.stages[2](network.downs[1](second))
    for found, wanted in zip(network.encode(x), (first, second, third), strict=True):
        torch.testing.assert_close(found, wanted)
    y = network.ups[0](network.ups[1](third, second), first)
    assert [type(layer).__name__ for layer in network.head] == ["GroupNorm", "ReLU", "Sequential"]
    assert network.head[2][0].kernel_size == (1, 1)
    torch.testing.assert_close(network(x), network.head(y))


def test_without_scan_and_scale_the_layer_gives_its_bias():
    layer = lightm_unet.MambaLayer(8, 4)
    torch.nn.init.zeros_(layer.scale)
    torch.nn.init.zeros_(layer.mamba.out_proj.weight)
    y = layer(torch.randn(1, 8, 3, 3, 3))
    torch.testing.assert_close(y, layer.project.bias.view(1, 4, 1, 1, 1).expand_as(y))


def test_a_voxel_sees_only_those_before_it():
    torch.manual_seed(0)
    layer, x = lightm_unet.MambaLayer(8, 8), torch.randn(1, 8, 4, 5)
    other = x.clone()
    other[0, :, 2, 1] += torch.randn(8)
    changed = ((layer(x) - layer(other)).abs().amax(1) > 1e-6).flatten().nonzero().flatten()
    assert changed.tolist() == list(range(11, 20))


def test_resolution_falls_by_the_maximum():
    torch.manual_seed(0)
    down, x = lightm_unet.DownLayer(8, 16, (1, 2, 2)), torch.randn(1, 8, 3, 4, 6)
    full = down.mix(x)
    blocks = full.reshape(1, 16, 3, 2, 2, 3, 2)
    assert torch.equal(down(x), blocks.amax((4, 6)))


def test_the_up_block_by_its_definition():
    torch.manual_seed(0)
    up = lightm_unet.UpBlock(2, 16, 8, 8)
    with torch.no_grad():
        up.scale.fill_(0.3)
        up.norm1.weight.uniform_()
    x, skip = torch.randn(1, 16, 2, 3), torch.randn(1, 8, 4, 6)
    narrow = torch.einsum("oi,bihw->bohw", up.narrow.weight[..., 0, 0], x)
    joined = torch.nn.functional.interpolate(narrow, scale_factor=2, mode="bilinear", align_corners=False) + skip
    y = up.conv(torch.relu(up.norm1(joined))) + 0.3 * joined
    torch.testing.assert_close(up(x, skip), torch.relu(up.norm2(y)))


def test_the_layer_runs_in_float32_under_autocast():
    torch.manual_seed(0)
    layer, x = lightm_unet.MambaLayer(8, 8), torch.randn(1, 8, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone()))
        assert layer(x.bfloat16()).dtype == torch.float32
        low = layer(x)
    assert torch.equal(low, layer(x))


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make("lightm_unet", make_spec(strides=strides, patch=(6, 16, 16), base=8)).eval()
    with torch.no_grad():
        shapes = [tuple(feature.shape[2:]) for feature in network.encode(torch.randn(1, 1, 6, 16, 16))]
    assert shapes == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]
    assert network.spec.blocks_encoder == (1, 2, 4)


def test_widths_are_multiples_of_the_groups():
    with torch.device("meta"):
        assert make("lightm_unet", make_spec(2, 3, base=13)).spec.features == (16, 32, 64)
        assert make("lightm_unet", make_spec(2, 6, base=8, resolutions=5)).spec.blocks_encoder == (1, 2, 2, 2, 4)
    with pytest.raises(UserError, match="8 groups do not divide the width 12"):
        make("lightm_unet", make_spec(2, 3, width=12))
