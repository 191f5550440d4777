"""Gradients of 3D convolutions whose maps are smaller than their kernels, in bf16 on a CPU."""

import copy

import pytest
import torch
from torch import nn

from autoseg.devices import lay_out_for_cpu
from autoseg.training.small_maps import SmallMapConv3d, guard_small_maps


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("kernel", "size"), [(3, (2, 2, 2)), (3, (2, 8, 8)), ((3, 1, 1), (2, 4, 4)), (5, (4, 4, 4))])
def test_gradients_are_those_of_single_precision(kernel, size, images):
    torch.manual_seed(0)
    plain = nn.Conv3d(32, 16, kernel, padding="same")
    guarded = copy.deepcopy(plain)
    lay_out_for_cpu(guarded, 3)  # as training does, before
    guard_small_maps(guarded)
    assert type(guarded) is SmallMapConv3d
    guarded = copy.deepcopy(guarded)  # as for a teacher
    x = torch.randn(images, 32, *size)
    plain(x).square().sum().backward()
    expected = plain.weight.grad
    for _ in range(5):
        del [torch.full((length,), float("nan")) for length in (100, 1000, 13824, 16000, 64000)][:]  # in freed memory
        guarded.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = guarded(x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        assert (guarded.weight.grad - expected).abs().max() < 0.02 * expected.abs().max()


def test_other_maps_classes_and_states_stay():
    class Own(nn.Conv3d):
        pass

    network = nn.ModuleDict({"own": Own(1, 1, 3), "plain": nn.Conv3d(1, 1, 3), "flat": nn.Conv2d(1, 1, 3)})
    names = list(network.state_dict())
    guard_small_maps(network)
    assert [type(network[name]) for name in ("own", "plain", "flat")] == [Own, SmallMapConv3d, nn.Conv2d]
    assert list(network.state_dict()) == names
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network["plain"](x), nn.Conv3d.forward(network["plain"], x))
