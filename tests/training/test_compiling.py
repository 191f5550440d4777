"""A network is compiled as training runs it, which leaves no trace, and training goes on where that fails."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoseg import plugins
from autoseg.conformance.architecture import example_spec
from autoseg.training import setting_up
from autoseg.training.setting_up import make_fabric

BATCH = 3


def build():
    """Return a network that draws random numbers and keeps running statistics while it trains."""
    plain = plugins.load("architecture", "plain_unet")

    class Restless(plain):
        def __init__(self, spec):
            super().__init__(spec)
            self.norm = nn.BatchNorm2d(spec.in_channels)
            self.register_buffer("one_value", torch.zeros(1).expand(4))  # cannot be written to in place

        def encode(self, x):
            return super().encode(functional.dropout(self.norm(x + 1.0), 0.5, self.training))

    torch.manual_seed(0)
    return Restless(example_spec(plain, 2)).train()


def make_trainer(compile):
    context = SimpleNamespace(configuration=SimpleNamespace(dims=2), processes=1)
    settings = SimpleNamespace(batch_size=2 * BATCH)
    return SimpleNamespace(
        compile=compile, context=context, stream_settings=lambda: settings, _share=lambda batch_size: batch_size // 2
    )


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no kernel for this gradient")


class Compiled(nn.Module):
    """Stands for a compiled network: notes how it is called; `turn` is applied to its outputs."""

    def __init__(self, network, turn=lambda output: output):
        super().__init__()
        self.network, self.turn, self.calls, self.gradients = network, turn, [], 0
        next(network.parameters()).register_hook(self.note)

    def note(self, gradient):
        self.gradients += 1

    def forward(self, x):
        self.calls.append((tuple(x.shape), self.network.training, torch.is_grad_enabled()))
        return [self.turn(output) for output in self.network(x)]


def compile_as(monkeypatch, turn=lambda output: output):
    """Have torch.compile return a `Compiled`; returns where its options are noted."""
    noted = {}

    def compile(network, **options):
        noted.update(options)
        return Compiled(network, turn)

    monkeypatch.setattr(torch, "compile", compile)
    return noted


def state_of(network):
    buffers = {name: (id(buffer), buffer.tolist()) for name, buffer in network.named_buffers()}
    return buffers, torch.random.get_rng_state().tolist(), [parameter.grad for parameter in network.parameters()]


def test_the_sample_is_a_training_step_without_traces(monkeypatch):
    options, network, fabric = compile_as(monkeypatch), build(), make_fabric(torch.device("cpu"), "fp32", 1)
    before = state_of(network)
    compiled = setting_up._compiled(network, make_trainer("on"), fabric)
    assert compiled.calls == [((BATCH, 1, *network.spec.patch_size), True, True)]
    assert compiled.gradients == 1
    assert options == {"dynamic": False}
    assert state_of(network) == before
    assert all(gradient is None for gradient in before[2])
    compiled(torch.zeros(compiled.calls[0][0]))
    assert state_of(network)[:2] != before[:2], "this network leaves traces"


def test_a_failure_in_the_backward_pass_leaves_the_network_as_it_was(monkeypatch, caplog):
    compile_as(monkeypatch, FailsBackward.apply)
    network, fabric = build(), make_fabric(torch.device("cpu"), "fp32", 1)
    before = state_of(network)
    assert setting_up._compiled(network, make_trainer("on"), fabric) is network
    assert state_of(network) == before
    assert caplog.messages == ["torch.compile failed (RuntimeError: no kernel for this gradient); going on without it"]


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_on_a_cpu_it_is_only_compiled_when_asked_for(compile, monkeypatch):
    options, network = compile_as(monkeypatch), build()
    assert setting_up._compiled(network, make_trainer(compile), make_fabric(torch.device("cpu"), "fp32", 1)) is network
    assert options == {}


def test_training_compiles_nothing_that_the_sample_has_not_compiled(monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def counting(kind):
        def compiler(graph, inputs):
            graphs.append(kind)
            return graph

        return compiler

    counted, genuine = aot_autograd(fw_compiler=counting("forward"), bw_compiler=counting("backward")), torch.compile

    def backend(graph, inputs):  # a function, which Fabric's copy of the options leaves the same
        return counted(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda module, **options: genuine(module, **{**options, "backend": backend}))
    fabric, network = make_fabric(torch.device("cpu"), "bf16", 1), build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of itself
        module = setting_up._set_up_module(network, make_trainer("on"), fabric)
        assert sorted(set(graphs)) == ["backward", "forward"]
        made = len(graphs)
        for _ in range(2):
            with fabric.autocast():
                outputs = module(torch.randn(BATCH, 1, *network.spec.patch_size))
            fabric.backward(sum(output.square().mean() for output in outputs))
    assert len(graphs) == made
    assert all(parameter.grad is not None for parameter in network.parameters())
