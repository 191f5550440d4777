"""Residual networks: published sizes, resolutions, the block by hand."""

import pytest
import torch
from autoseg.architectures.blocks.resnet import BasicBlock, Bottleneck, ResNet
from network_specs import count

DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
STRIDES_2D = ((2, 2), (1, 1), (2, 2), (2, 2), (2, 2))


@pytest.mark.parametrize(("block", "parameters"), [(BasicBlock, 21_284_672), (Bottleneck, 23_508_032)])
def test_published_parameter_counts(block, parameters):
    with torch.device("meta"):
        network = ResNet(3, WIDTHS, DEPTHS, STRIDES_2D, [(3, 3)] * 5, block=block, pool=(2, 2))
    assert count(network) == parameters
    names = network.state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.1.bias", "layer4.2.conv2.weight"} <= names
    assert any(name.startswith("layer1.0.downsample") for name in names) == (block is Bottleneck)


@pytest.mark.parametrize(("pool", "edges"), [(None, [16, 8, 4, 2]), ((2, 2), [8, 4, 2, 1])])
def test_resolutions(pool, edges):
    network = ResNet(1, (2, 4, 6, 8), (1, 1, 1, 1), STRIDES_2D, [(3, 3)] * 5, pool=pool).eval()
    maps = network(torch.zeros(1, 1, 32, 32))
    assert [tuple(found.shape[1:]) for found in maps] == [(w, e, e) for w, e in zip((2, 4, 6, 8), edges, strict=True)]


def test_coarse_axes_and_norms():
    strides, kernels = ((1, 2, 2), (1, 1, 1), (2, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    network = ResNet(1, (2, 4), (2, 1), strides, kernels, norm="instance")
    assert network.conv1.kernel_size == (1, 7, 7)
    assert network.layer1[1].conv2.kernel_size == (1, 3, 3)
    assert {type(m) for m in network.modules() if "Norm" in type(m).__name__} == {torch.nn.InstanceNorm3d}
    assert [tuple(found.shape[2:]) for found in network(torch.zeros(1, 1, 4, 8, 8))] == [(4, 4, 4), (2, 2, 2)]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_without_its_last_norm_a_block_passes_the_projection(block):
    torch.manual_seed(0)
    unit = block(4, 2, (2, 2), (3, 3), "batch").eval()
    torch.nn.init.zeros_((unit.bn3 if block is Bottleneck else unit.bn2).weight)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(unit(x), unit.downsample(x).relu())
    assert unit(x).shape == (1, 2 * block.expansion, 3, 3)


def test_projections_use_no_strided_convolution():
    """oneDNN's breaks the memory of the process, see strided_projection."""
    network = ResNet(1, (2, 4), (1, 1), ((2, 2), (1, 1), (2, 2)), [(3, 3)] * 3)
    assert network.layer2[0].downsample[0].stride == (1, 1)
    assert network.layer2[0].downsample[0].weight.shape == (4, 2, 1, 1)


def test_stem_and_blocks_step_by_step():
    torch.manual_seed(0)
    strides, kernels = ((2, 2), (1, 1), (2, 2)), [(3, 3)] * 3
    network = ResNet(1, (2, 4), (1, 1), strides, kernels, block=Bottleneck, pool=(2, 2)).double().eval()
    torch.nn.init.constant_(network.bn1.bias, -2.0)  # so that not every maximum is positive
    x = torch.randn(1, 1, 32, 32).double()
    conv, relu = torch.nn.functional.conv2d, torch.relu
    y = relu(network.bn1(conv(x, network.conv1.weight, stride=2, padding=3)))
    y, maps = torch.nn.functional.max_pool2d(y, 3, 2, 1), []
    for layer, stride in ((network.layer1[0], 1), (network.layer2[0], 2)):
        z = relu(layer.bn1(conv(y, layer.conv1.weight)))
        z = relu(layer.bn2(conv(z, layer.conv2.weight, stride=stride, padding=1)))
        z = layer.bn3(conv(z, layer.conv3.weight))
        y = relu(z + layer.downsample[1](conv(y, layer.downsample[0].weight, stride=stride)))
        maps.append(y)
    for found, wanted in zip(network(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    unit, x = BasicBlock(2, 2, (1, 1), (3, 3), "batch").double().eval(), torch.randn(1, 2, 6, 6).double()
    y = relu(unit.bn1(conv(x, unit.conv1.weight, padding=1)))
    torch.testing.assert_close(unit(x), relu(unit.bn2(conv(y, unit.conv2.weight, padding=1)) + x))


def test_initial_values():
    torch.manual_seed(0)
    network = ResNet(1, (16, 16), (1, 1), ((1, 1),) * 3, [(3, 3)] * 3)
    assert network.layer2[0].conv2.weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)
