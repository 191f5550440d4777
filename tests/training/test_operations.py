"""Operations are counted right: against numbers found by hand, and over every network against its own forward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoseg import plugins
from autoseg.conformance.architecture import ISOTROPIC, example_spec
from autoseg.devices import lay_out_for_cpu
from autoseg.training.operations import operation_counter

# Convolutions, in groups too, attention over all, over windows and reduced, scans, experts.
NETWORKS = (
    "plain_unet", "mcanet", "msvm_unet", "focal_unet", "transdae", "swin_unet", "primus", "lightm_unet", "xlstm_unet",
    "swin_smt", "medvisionllama", "meddinov3",
)  # fmt: skip
# A step costs less than three forward passes: medvisionllama's frozen layer gives its weights no gradients, and the
# branches of meddinov3 are computed for a part of the batch (here half, where evaluation computes all).
CHEAPER = {"medvisionllama", "meddinov3"}


def counted(act):
    with operation_counter() as counter:
        act()
    return counter.get_total_flops()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("images", [1, 2])
def test_a_network_laid_out_for_a_cpu_counts_as_the_plain_one(images, precision):
    spec = example_spec(plugins.load("architecture", "plain_unet"), 3, ISOTROPIC)
    x = torch.randn(images, spec.in_channels, *spec.patch_size, generator=torch.Generator().manual_seed(0))

    def step(network):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(x)
        sum(output.float().square().mean() for output in outputs).backward()

    plain, laid_out = (plugins.build_network("plain_unet", spec).train() for _ in range(2))
    lay_out_for_cpu(laid_out, 3)
    assert counted(lambda: step(laid_out)) == counted(lambda: step(plain))


# Each of the three passes: 2 x batch 2 x voxels x the weights that there are (channels x channels of a group x kernel).
@pytest.mark.parametrize(
    ("layer", "shape", "each"),
    [
        (nn.Conv2d(256, 256, 3, padding=1, groups=256), (2, 256, 16, 16), 2 * 2 * 256 * 256 * 9),
        (nn.Conv2d(8, 4, 3, padding=1), (2, 8, 6, 6), 2 * 2 * 36 * (4 * 8 * 9)),
        (nn.Conv2d(8, 4, 3, padding=1, groups=2), (2, 8, 6, 6), 2 * 2 * 36 * (4 * 4 * 9)),
        (nn.Conv3d(6, 12, 3, stride=2, padding=1, groups=3), (2, 6, 4, 4, 4), 2 * 2 * 8 * (12 * 2 * 27)),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), (2, 8, 5, 5), 2 * 2 * 25 * (8 * 4 * 4)),
        (nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4), (2, 8, 5, 5), 2 * 2 * 25 * (8 * 1 * 4)),
        (nn.ConvTranspose3d(6, 6, 2, stride=2, groups=6), (2, 6, 3, 3, 3), 2 * 2 * 27 * (6 * 1 * 8)),
    ],
)
def test_convolutions_in_groups(layer, shape, each):
    x = torch.zeros(shape, requires_grad=True)
    assert counted(lambda: layer(x)) == each
    y = layer(x).sum()
    assert counted(lambda: torch.autograd.grad(y, x, retain_graph=True)) == each
    assert counted(lambda: torch.autograd.grad(y, layer.weight, retain_graph=True)) == each
    assert counted(y.backward) == 2 * each


def attended(bias, grad):
    """Return the operations of an attention's passes: 2 x 3 heads, 10 queries of 4, 12 keys, values of 4."""
    query, key, value = (torch.zeros(2, 3, count, 4, requires_grad=grad) for count in (10, 12, 12))
    bias = torch.zeros(1, 3, 10, 12, requires_grad=grad) if bias else None
    out = []
    forward = counted(lambda: out.append(functional.scaled_dot_product_attention(query, key, value, bias)))
    return forward, counted(out[0].sum().backward) if grad else 0


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_costs_the_same_by_every_kernel(kernel, bias):
    forward = 2 * 6 * 10 * 12 * (4 + 4)  # queries by keys, weights by values
    with sdpa_kernel([kernel, SDPBackend.MATH]):  # the fused kernel learns no bias
        assert attended(bias, grad=False) == (forward, 0)
        assert attended(bias, grad=True) == (forward, 2 * forward)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_costs_three_forward_passes(name):
    architecture = plugins.load("architecture", name)
    spec = example_spec(architecture, min(architecture.dims), ISOTROPIC, 1, 4, deep_supervision=False)
    torch.manual_seed(0)
    network = architecture(spec)
    image = torch.zeros(2, 1, *spec.patch_size)
    step = counted(lambda: network.train()(image).sum().backward())
    with torch.no_grad():
        forward = counted(lambda: network.eval()(image[:1]))
    assert (0.6 if name in CHEAPER else 0.8) < step / (3 * 2 * forward) < 1.3
