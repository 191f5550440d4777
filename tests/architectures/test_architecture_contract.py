"""The contract of networks, over every registered architecture in its dimensions."""

import math
from functools import cache

import pytest
import torch

from autoseg import plugins
from autoseg.conformance.architecture import ANISOTROPIC, ISOTROPIC, example_spec
from autoseg.devices import lay_out_for_cpu
from autoseg.errors import UserError
from autoseg.planning.memory import parameter_count, trace_training
from autoseg.training.small_maps import guard_small_maps

FOUND = {found.name: found for found in plugins.list_plugins("architecture")}
KEEP_ALL_HEADS = {"plain_unet", "residual_encoder_unet"}  # nnU-Net's weights hold the heads of every resolution
STRIDES = {"isotropic": ISOTROPIC, "anisotropic": ANISOTROPIC}


@cache
def load(name):
    try:
        return plugins.load("architecture", FOUND[name].reference)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            return str(error)
        raise


def architecture_of(name, dims=None):
    loaded = load(name)
    if isinstance(loaded, str):
        pytest.skip(loaded)
    if dims is not None and dims not in loaded.dims:
        pytest.skip(f"{name} has no {dims}D form")
    return loaded


def every(test):
    test = pytest.mark.parametrize("dims", [2, 3], ids=["2D", "3D"])(test)
    return pytest.mark.parametrize("name", sorted(FOUND))(test)


def build(name, dims, strides=ISOTROPIC, channels=1, *, deep_supervision=True):
    architecture = architecture_of(name, dims)
    torch.manual_seed(0)
    return architecture(example_spec(architecture, dims, strides, channels, 4, deep_supervision=deep_supervision))


def draw(network, batch=1):
    shape = (batch, network.spec.in_channels, *network.spec.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def as_list(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


def test_the_registry_has_networks():
    assert {"plain_unet", "residual_encoder_unet", "segmamba", "xlstm_unet", "primus"} <= FOUND.keys()


@every
@pytest.mark.parametrize(  # `conformance` looks at deep supervision with anisotropic strides
    ("strides", "deep_supervision"), [("isotropic", True), ("anisotropic", False)], ids=["deep", "anisotropic-single"]
)
def test_every_parameter_gets_a_finite_gradient(name, dims, strides, deep_supervision):
    network = build(name, dims, STRIDES[strides], 3, deep_supervision=deep_supervision).train()
    outputs = as_list(network(draw(network, 2)))
    assert deep_supervision or len(outputs) == 1
    sum(output.square().mean() for output in outputs).backward()
    idle = {parameter for parameter, tensor in network.named_parameters() if tensor.grad is None}
    if name in KEEP_ALL_HEADS and not deep_supervision:
        idle = {parameter for parameter in idle if "seg_layers" not in parameter}
    assert not idle
    assert all(tensor.grad.isfinite().all() for tensor in network.parameters() if tensor.grad is not None)


@every
def test_one_output_per_weight_or_decoder_stage_or_one_tensor(name, dims):
    """What the loss of deep supervision expects: a tensor, or one output per weight, by default per decoder stage."""
    network = build(name, dims).train()
    outputs = network(draw(network, 2))
    if isinstance(outputs, list):
        sizes = [math.prod(output.shape[2:]) for output in outputs]
        assert sizes == sorted(sizes, reverse=True)
        weights = network.output_weights()
        assert weights is not None or len(set(sizes)) == len(sizes)  # equal resolutions are weighted on purpose
        assert len(outputs) == (len(network.spec.features) - 1 if weights is None else len(weights))
    assert as_list(outputs)[0].shape == (2, 4, *network.spec.patch_size)


@every
def test_training_with_one_sample_under_bfloat16_with_the_channels_last(name, dims):
    network = build(name, dims, ANISOTROPIC, 5).train()
    lay_out_for_cpu(network, dims)  # as training on a CPU does
    guard_small_maps(network)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = as_list(network(draw(network)))
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@every
def test_weights_fit_with_and_without_training_mode(name, dims):
    network, other = build(name, dims), build(name, dims)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    other.eval().load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    x = draw(network)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), other(x))


@every
def test_the_planner_can_trace_it(name, dims):
    architecture = architecture_of(name, dims)
    spec = example_spec(architecture, dims)
    network = architecture(spec)
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert parameter_count(architecture, spec) == weights
    memory = trace_training(architecture, spec, 2)
    assert memory.static >= 8 * weights  # weights and momentum
    assert memory.peak > memory.static


@every
def test_the_spec_that_it_asks_for_is_one(name, dims):
    architecture = architecture_of(name, dims)
    spec = example_spec(architecture, dims)
    assert architecture.adapt_spec(spec) == spec, "adapting an adapted spec must change nothing"
    again = type(spec).model_validate_json(spec.model_dump_json())  # as a plan read from disk
    assert again == spec
    multiple = architecture.patch_multiple(again)
    assert multiple == architecture.patch_multiple(spec)
    assert len(multiple) == dims
    assert all(edge % step == 0 for edge, step in zip(spec.patch_size, multiple, strict=True))
    torch.manual_seed(0)
    assert architecture(again).state_dict().keys() == architecture(spec).state_dict().keys()


@every
def test_building_twice_from_one_seed_gives_the_same_weights(name, dims):
    pairs = zip(build(name, dims).parameters(), build(name, dims).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
