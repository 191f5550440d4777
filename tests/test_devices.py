"""How torch is told to compute here, and how weights are laid out for the CPU."""

import pytest
import torch
from torch import nn

from autoseg import devices
from autoseg.devices import prepare_to_compute, put_channels_last

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def torch_settings():
    """What these tests change of torch is as before after them."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    cudnn.benchmark, cudnn.deterministic = before[:2]
    torch.use_deterministic_algorithms(before[2])


@pytest.mark.parametrize(
    ("asked", "cores", "processes", "used"),
    [(8, 2, 1, 2), (1, 4, 1, 1), (8, 4, 2, 2), (8, 5, 2, 2), (8, 2, 4, 1), (3, 3, 1, 3)],
)
def test_torch_takes_the_threads_of_the_quota_or_the_fewer_asked_for(
    asked, cores, processes, used, monkeypatch, torch_settings
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    torch.set_num_threads(asked)
    prepare_to_compute(CPU, processes=processes)
    assert torch.get_num_threads() == used


def test_a_number_of_threads_that_the_user_sets_holds(monkeypatch, torch_settings):
    """A campaign that goes on with fewer cores keeps the threads that its earlier runs were measured with."""
    monkeypatch.setattr(devices, "available_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    prepare_to_compute(CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("device", "deterministic_cudnn", "deterministic", "before", "after"),
    [
        (CUDA, False, False, False, True),
        (CUDA, False, True, False, False),
        (CUDA, False, True, True, False),  # a run before had it on
        (CUDA, True, False, True, False),
        (CPU, False, False, False, False),
        (CPU, False, False, True, True),
    ],
)
def test_cudnn_chooses_by_timing_unless_the_same_bits_are_asked_for(
    device, deterministic_cudnn, deterministic, before, after, torch_settings
):
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before, deterministic_cudnn
    torch.use_deterministic_algorithms(deterministic)
    prepare_to_compute(device)
    assert torch.backends.cudnn.benchmark is after
    assert torch.backends.cudnn.deterministic is deterministic_cudnn


@pytest.mark.parametrize(("device", "kept"), [(CPU, 1), (CUDA, 0)])
def test_memory_is_kept_for_networks_on_a_cpu(device, kept, monkeypatch, torch_settings):
    asked = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: asked.append(device))
    prepare_to_compute(device)
    assert len(asked) == kept


@pytest.mark.parametrize("dims", [2, 3])
def test_only_kernels_of_the_networks_own_rank_are_laid_out(dims):
    kinds = {2: (nn.Conv2d, torch.channels_last), 3: (nn.Conv3d, torch.channels_last_3d)}
    own, layout = kinds[dims]
    other, _ = kinds[5 - dims]
    network = nn.ModuleDict({"own": own(4, 6, 3), "other": other(4, 6, 3), "norm": nn.BatchNorm1d(3)})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = list(network.parameters())
    put_channels_last(network, dims)
    assert network["own"].weight.is_contiguous(memory_format=layout)
    assert not network["own"].weight.is_contiguous()
    assert network["other"].weight.is_contiguous()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))  # optimisers hold on to them


def test_a_full_memory_of_the_cpu_is_a_full_device():
    from autoseg.devices import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
