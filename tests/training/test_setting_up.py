"""What distributed training asks of gradients."""

import warnings

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from autoseg import plugins
from autoseg.conformance.architecture import example_spec
from autoseg.devices import put_channels_last
from autoseg.training.setting_up import keep_gradient_strides


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone, in which torch repeats what it otherwise says once."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    torch.distributed.destroy_process_group()


def step(network):
    distributed = DistributedDataParallel(network)  # whose hooks live no longer than it
    outputs = distributed(torch.ones(2, 1, *network.spec.patch_size))
    sum(output.square().mean() for output in (outputs if isinstance(outputs, list) else [outputs])).backward()


def build(name):
    """Return a network in the layout of training on a CPU; 1x1, depth-wise and token parameters have axes of 1."""
    architecture = plugins.load("architecture", name)
    torch.manual_seed(0)
    network = architecture(example_spec(architecture, 2)).train()
    put_channels_last(network, 2)
    return network


class OddStrides(torch.autograd.Function):
    """The identity, whose gradient has another stride along an axis of length 1."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.contiguous().as_strided((3, 1), (1, 7))


class OddNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 1))

    def forward(self, x):
        return x @ OddStrides.apply(self.weight)


@pytest.mark.parametrize("hooked", [True, False])
def test_odd_strides_of_an_axis_of_length_one_are_told_without_the_hook_only(one_process, hooked):
    network = OddNetwork()
    if hooked:
        keep_gradient_strides(network)
    distributed = DistributedDataParallel(network)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        distributed(torch.ones(2, 3)).sum().backward()
    found = [str(warning.message) for warning in told if "Grad strides do not match" in str(warning.message)]
    assert bool(found) != hooked
    assert network.weight.grad.tolist() == [[2.0], [2.0], [2.0]]


@pytest.mark.parametrize("name", ["attention_unet", "mcanet", "meddinov3"])
def test_distributed_training_finds_the_strides_that_it_expects(one_process, name):
    network = build(name)
    keep_gradient_strides(network)
    step(network)
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
    assert all(gradient.stride() == parameter.stride() for parameter, gradient in gradients)
    unhooked = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kernels, such as those of one thread, give the right strides by chance
        step(unhooked)
    for (_, gradient), parameter in zip(gradients, unhooked.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad), "the strides are all that differs"
