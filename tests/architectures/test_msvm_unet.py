"""MSVM-UNet: published sizes, the perceptron of several kernels, expanding, norms and stages from the plan."""

import pytest
import torch
from autoseg.architectures import msvm_unet
from autoseg.architectures.blocks.mlp import Mlp
from network_specs import count, make, make_spec, stir, to_first, to_last

from autoseg.errors import UserError


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("msvm_unet", make_spec(2, 6, patch=(224, 224), channels=3, outputs=9))
    encoder = sum(count(part) for part in (network.stem, network.stages, network.downs))
    assert encoder == 29_478_528
    assert count(network) - encoder == 6_446_985
    assert count(network) == 35_925_513
    assert [len(stage) for stage in network.stages] == [2, 2, 8, 2]
    assert network.spec.features == (96, 96, 192, 384, 768)
    rates = [block.drop_path.rate for stage in network.stages for block in stage]
    assert rates == pytest.approx([0.2 * i / 13 for i in range(14)])
    rates = [block.drop_path.rate for up in reversed(network.ups) for block in up.blocks]
    assert rates == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0])


def test_features_and_output_of_64_by_64():
    torch.manual_seed(0)
    network = make("msvm_unet", make_spec(2, 6, patch=(64, 64), channels=3, outputs=9, base=8)).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 3, 64, 64))
        assert network.decode(features).shape == (1, 9, 64, 64)
        assert network(torch.randn(1, 3, 32, 96)).shape == (1, 9, 32, 96)
    assert [tuple(f.shape[1:]) for f in features] == [(24, 16, 16), (48, 8, 8), (96, 4, 4), (192, 2, 2)]


@pytest.mark.parametrize("sizes", [(5, 6), (3, 4, 5)])
def test_the_perceptron_of_several_kernels(sizes):
    torch.manual_seed(0)
    dims, x = len(sizes), torch.randn(2, *sizes, 4)
    mixed, plain = msvm_unet.MultiScaleMlp(dims, 4, 16), Mlp(4, 16)
    plain.load_state_dict({name: tensor for name, tensor in mixed.state_dict().items() if "convs" not in name})
    assert not torch.allclose(mixed(x), plain(x))
    with torch.no_grad():
        for conv in mixed.convs:
            conv.weight.zero_()
        torch.testing.assert_close(mixed(x), plain(x))
        for conv in mixed.convs:
            conv.weight[(slice(None), 0, *[conv.kernel_size[0] // 2] * dims)] = 1
        torch.testing.assert_close(mixed(x), plain.fc2(4 * plain.act(plain.fc1(x))))
    assert [conv.kernel_size[0] for conv in mixed.convs] == [1, 3, 5]


@pytest.mark.parametrize("stride", [(2, 2), (4, 4), (1, 2, 2)])
def test_expanding_enlarges_by_the_stride(stride):
    torch.manual_seed(0)
    dims = len(stride)
    expand, x = msvm_unet.LargeKernelExpanding(8, 4, stride, "batch"), torch.randn(2, 8, *[3] * dims)
    assert expand(x).shape == (2, 4, *(3 * step for step in stride))
    # a position's block comes from its own channels where the 3-convolution is the identity
    with torch.no_grad():
        expand.layers[3].weight.zero_()
        expand.layers[3].weight[(slice(None), 0, *[1] * dims)] = 1
    expand.eval()
    other = x.clone()
    other[(slice(None), slice(None), *[1] * dims)] += 1
    changed = (expand(x) != expand(other)).any(1)[0].nonzero()
    assert changed.amin(0).tolist() == list(stride)
    assert changed.amax(0).tolist() == [2 * step - 1 for step in stride]


def test_the_norm_of_the_decoder():
    with torch.device("meta"):
        kinds = [
            {type(module).__name__ for module in make("msvm_unet", spec).modules() if "Norm" in type(module).__name__}
            for spec in (make_spec(2, 4), make_spec(3, 4), make_spec(2, 4, norm="instance"))
        ]
    assert [next(name for name in kind if name[0] in "BI") for kind in kinds] == [
        "BatchNorm2d", "InstanceNorm3d", "InstanceNorm2d",
    ]  # fmt: skip


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    network = make("msvm_unet", make_spec(strides=strides, patch=(6, 32, 32), base=4)).eval()
    assert network.stem[0].stride == network.stem[3].stride == (1, 2, 2)
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 6, 32, 32))
        assert network.decode(features).shape == (1, 3, 6, 32, 32)
    assert [tuple(feature.shape[2:]) for feature in features] == [(6, 8, 8), (3, 4, 4)]


def test_an_undivided_first_stride():
    network = make("msvm_unet", make_spec(2, 4, base=4, token_size=[2, 2]))
    assert [network.stem[0].stride, network.stem[3].stride] == [(2, 2), (1, 1)]
    assert network.spec.strides == ((1, 1), (2, 2), (2, 2), (2, 2))


def test_initial_values():
    torch.manual_seed(0)
    network = make("msvm_unet", make_spec(2, 4, base=16))
    block = network.stages[0][0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (block.mlp.fc1.bias == 0).all()
    assert (block.mix.scans.A_log == 0).all()  # one state: log 1
    assert network.head.weight.std() > 0.05  # convolutions as torch draws them


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="cannot take norm="):
        make("msvm_unet", make_spec(2, 4, norm="layer"))
    with pytest.raises(UserError, match="depths must have 2 entries"):
        make("msvm_unet", make_spec(2, 4, depths=[2]))


def enlarge(layer, x, step):
    """By definition: 1-convolution, norm, ReLU, depthwise 3-convolution, shuffle (rows, columns, channels), LN."""
    first, norm, _, depthwise = layer.layers
    conv = torch.nn.functional.conv2d
    y = torch.relu(norm(conv(x, first.weight, first.bias)))
    y = conv(y, depthwise.weight, depthwise.bias, padding=1, groups=y.shape[1])
    batch, _, rows, columns = y.shape
    y = y.reshape(batch, step, step, -1, rows, columns).permute(0, 4, 1, 5, 2, 3)
    return to_first(layer.norm(y.reshape(batch, rows * step, columns * step, -1)))


def test_step_by_step():
    """Stem, stages, down-sampling, expansions, joins and head around the blocks; the decoder's perceptrons."""
    torch.manual_seed(0)
    network = stir(make("msvm_unet", make_spec(2, 5, patch=(32, 32), base=4, depths=[1, 1, 1])))
    x, conv, gelu = torch.randn(1, 1, 32, 32).double(), torch.nn.functional.conv2d, torch.nn.functional.gelu

    def norm(layer, y):
        return to_first(torch.nn.functional.layer_norm(to_last(y), y.shape[1:2], layer.weight, layer.bias, 1e-5))

    first, norm1, _, second, norm2 = network.stem
    y = gelu(norm(norm1, conv(x, first.weight, first.bias, 2, 1)))
    y = norm(norm2, conv(y, second.weight, second.bias, 2, 1))
    maps = [to_first(network.stages[0](to_last(y)))]
    for (down, after), stage in zip(network.downs, network.stages[1:], strict=True):
        y = norm(after, conv(maps[-1], down.weight, down.bias, 2, 1))
        maps.append(to_first(stage(to_last(y))))
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    y = maps[2]
    for level in (1, 0):
        up = network.ups[level]
        y = torch.cat([enlarge(up.expand, y, 2), maps[level]], 1)
        y = to_last(conv(y, up.join.weight, up.join.bias))
        for block in up.blocks:
            y = y + block.mix(block.norm(y))
            inner = to_first(gelu(block.mlp.fc1(block.mlp_norm(y))))
            inner = inner + sum(
                conv(inner, part.weight, padding=size // 2, groups=inner.shape[1])
                for part, size in zip(block.mlp.convs, (1, 3, 5), strict=True)
            )
            y = y + block.mlp.fc2(to_last(inner))
        y = to_first(y)
    y = enlarge(network.expand, y, 4)
    torch.testing.assert_close(network(x), conv(y, network.head.weight, network.head.bias))
    blocks = [block for stage in network.stages for block in stage]
    assert all(not block.mix.gated and block.mix.scans.split[1:] == (1, 1) for block in blocks)
