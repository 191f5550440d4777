"""Networks and patches that are larger than the memory are told before they are allocated."""

import pytest
import torch
from model_factory import make_plans
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autoseg import network_room
from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.network_room import check_patch
from autoseg.plugins import build_network


@pytest.fixture
def configuration():
    return make_plans("3d", channels=2, outputs=3).configuration("3d")


def free(monkeypatch, size):
    monkeypatch.setattr(network_room, "available_memory", lambda: size)


def test_weights_are_counted_before_they_are_allocated(monkeypatch, configuration):
    network = build_network("plain_unet", configuration.network)
    exact = 4 * sum(parameter.numel() for parameter in network.parameters())
    free(monkeypatch, exact)
    build_network("plain_unet", configuration.network)
    free(monkeypatch, exact - 1)
    with pytest.raises(UserError, match=r"the weights of PlainUNet with features \(4, 6\).* GiB are free"):
        build_network("plain_unet", configuration.network)


def test_nothing_is_allocated_for_a_network_that_does_not_fit(monkeypatch, configuration):
    wide = configuration.network.model_copy(update={"features": (8192, 8192)})  # 36 GB
    free(monkeypatch, 2**20)
    with pytest.raises(UserError, match=r"features \(8192, 8192\).*blocks_encoder \(1, 1\) need [0-9.]+ GiB"):
        build_network("plain_unet", wide)


def test_a_network_of_fewer_weights_than_a_u_net_is_built(monkeypatch, configuration):
    class Small(Architecture):
        def __init__(self, spec):
            super().__init__(spec)
            self.layer = torch.nn.Linear(1, 1)

    free(monkeypatch, 8)
    assert Small(configuration.network).layer.weight.numel() == 1
    free(monkeypatch, 7)
    with pytest.raises(UserError, match="Small"):
        Small(configuration.network)


def test_a_network_that_cannot_be_traced_is_built(monkeypatch, configuration):
    class ReadsValues(Architecture):
        def __init__(self, spec):
            super().__init__(spec)
            self.value = torch.ones(1).item() + int(torch.ones(3).nonzero().sum())

    free(monkeypatch, 1)
    assert ReadsValues(configuration.network).value == 4


def test_shapes_alone_are_traced_at_any_size(monkeypatch, configuration):
    wide = configuration.network.model_copy(update={"features": (8192, 8192)})
    free(monkeypatch, 1)
    with FakeTensorMode():
        network = build_network("plain_unet", wide)
    assert isinstance(next(network.parameters()), FakeTensor)


def test_a_patch_must_fit(monkeypatch, configuration):
    exact = 4 * 8 * 16 * 16 * (2 + 3)
    free(monkeypatch, exact)
    check_patch(configuration)
    free(monkeypatch, exact - 1)
    with pytest.raises(UserError, match=r"field configurations\.3d\.patch_size: a patch \(8, 16, 16\) of 2 channel"):
        check_patch(configuration)
