"""FMUNet: the published size, layers step by step, resolution modes from the plan."""

import pytest
import torch
from network_specs import count, make, make_spec, stir

from autoseg.errors import UserError

TWO = (2, 2, 2)
MODES = {
    0: ((1, 1, 1), *[TWO] * 4),
    1: ((1, 1, 1), (1, 2, 2), *[TWO] * 3),
    2: ((1, 1, 1), (1, 2, 2), (1, 2, 2), *[TWO] * 2),
}


def test_published_parameter_count():
    with torch.device("meta"):
        network = make("fmunet", make_spec(strides=MODES[0], patch=(64, 128, 128), outputs=2))
    assert network.spec.features == (32, 64, 128, 256, 512)
    assert count(network) == 47_332_680
    rates = [[part.p for part in stage.modules() if isinstance(part, torch.nn.Dropout)] for stage in network.encoder]
    assert rates == [[0.0] * 2] * 2 + [[0.2] * 2] * 3


def test_step_by_step():
    """Pre-activation order, both stages of the bottleneck, interpolation, joins, heads."""
    torch.manual_seed(0)
    network = stir(make("fmunet", make_spec(2, 4, patch=(32, 32), base=4, dropout=0.0)))
    x, conv = torch.randn(2, 1, 32, 32).double(), torch.nn.functional.conv2d

    def unit(norm, layer, y, stride=1):
        y = torch.nn.functional.instance_norm(y, weight=norm.weight, bias=norm.bias)
        y = torch.nn.functional.leaky_relu(y, 0.01)
        return conv(y, layer.weight, layer.bias, stride, layer.weight.shape[-1] // 2)

    def stage(blocks, y):
        for block in blocks:
            y = y + unit(block.layers[0], block.layers[3], y)
        return y

    maps = [stage(network.encoder[0], conv(x, network.stem.weight, network.stem.bias, padding=1))]
    for down, blocks in zip(network.downs, network.encoder[1:], strict=True):
        maps.append(stage(blocks, unit(down[0], down[2], maps[-1], 2)))
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    y, logits = stage(network.decoder[3], maps[3]), []
    for level in (2, 1, 0):
        up = network.ups[level]
        y = unit(up.reduce[0], up.reduce[2], y)
        y = torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        y = stage(network.decoder[level], unit(up.join[0], up.join[2], torch.cat([maps[level], y], 1)))
        logits.insert(0, unit(network.heads[level][0], network.heads[level][2], y))
    torch.testing.assert_close(network(x), logits[0])
    for found, wanted in zip(network.train()(x), logits, strict=True):
        torch.testing.assert_close(found, wanted)


def test_modes_and_outputs_follow_the_strides():
    flat = (1, 3, 3)
    for mode, strides in MODES.items():
        network = make("fmunet", make_spec(strides=strides, patch=(16, 32, 32), base=4))
        kernels = [stage[0].layers[3].kernel_size for stage in network.encoder]
        assert kernels == [flat] * mode + [(3, 3, 3)] * (5 - mode)
        assert network.stem.kernel_size == kernels[0]
    shapes = [tuple(output.shape[2:]) for output in network.train()(torch.randn(1, 1, 16, 32, 32))]
    assert shapes == [(16, 32, 32), (16, 16, 16), (16, 8, 8), (8, 4, 4)]


def test_another_size_than_planned_and_options():
    network = make("fmunet", make_spec(2, 7, patch=(64, 64), base=4, widths=[4, 4, 8, 8, 16], depth=1)).eval()
    assert [len(stage) for stage in network.decoder] == [1] * 5
    with torch.no_grad():
        assert network(torch.randn(1, 1, 48, 32)).shape == (1, 3, 48, 32)
    with pytest.raises(UserError, match="2 to 5 resolutions"):
        make("fmunet", make_spec(2, 1))
