"""The unit of U-Nets: order of its layers, what it computes, pooling before it."""

import pytest
import torch
from autoseg.architectures.blocks.double_conv import double_conv
from torch.nn import functional


@pytest.mark.parametrize(("norm", "name"), [("batch", "BatchNorm"), ("instance", "InstanceNorm")])
@pytest.mark.parametrize("dims", [2, 3])
def test_order_of_the_layers(dims, norm, name):
    kinds = [type(layer).__name__ for layer in double_conv(2, 3, (3,) * dims, norm)]
    assert kinds == [f"Conv{dims}d", f"{name}{dims}d", "ReLU"] * 2
    pooled = [type(layer).__name__ for layer in double_conv(2, 3, (3,) * dims, norm, pool=(1, 2, 2)[-dims:])]
    assert pooled == [f"MaxPool{dims}d", *kinds]


def test_step_by_step():
    torch.manual_seed(0)
    unit, x = double_conv(2, 3, (3, 1), "batch", pool=(1, 2)).double().eval(), torch.randn(1, 2, 4, 6).double()
    for norm in (unit[2], unit[5]):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    y = functional.max_pool2d(x, (1, 2))
    for conv, norm in ((unit[1], unit[2]), (unit[4], unit[5])):
        y = functional.conv2d(y, conv.weight, conv.bias, padding=(1, 0))
        y = torch.relu(y * norm.weight[:, None, None] / (1 + norm.eps) ** 0.5 + norm.bias[:, None, None])
    torch.testing.assert_close(unit(x), y)


def test_parameters_and_their_names():
    unit = double_conv(4, 8, (3, 3), "batch")
    assert [name for name, _ in unit.named_parameters()] == [
        f"{layer}.{part}" for layer in (0, 1, 3, 4) for part in ("weight", "bias")
    ]
    assert sum(p.numel() for p in unit.parameters()) == 9 * 4 * 8 + 8 + 9 * 8 * 8 + 8 + 4 * 8
    free = double_conv(4, 8, (3, 3), "batch", bias=False)
    assert sum(p.numel() for p in free.parameters()) == 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8
