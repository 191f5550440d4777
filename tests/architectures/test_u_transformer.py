"""U-Transformer: size of the reference, attention at the bottom, gates, sizes."""

import logging

import pytest
import torch
from autoseg.architectures.blocks.telling import tell
from autoseg.architectures.u_transformer import MapAttention, UTransformer
from network_specs import count, make_spec

from autoseg.errors import UserError


def make(spec):
    return UTransformer(UTransformer.adapt_spec(spec))


def reference(heads):
    spec = make_spec(2, stages=4, patch=(64, 64), channels=3, outputs=1, base=64, deep=False, heads=heads)
    with torch.device("meta"):
        return make(spec)


def test_parameter_counts_of_the_reference():
    network = reference(1)
    assert count(network) == count(reference(8)) == 11_677_825
    assert [count(stage) for stage in network.encoder] == [38_976, 221_952, 886_272, 3_542_016]
    assert count(network.attention) == 786_432
    ups = [count(network.gates[s]) + count(network.decoder[s]) for s in (2, 1, 0)]
    assert ups == [4_723_712, 1_182_208, 296_192]
    assert count(network.heads) == 65


@pytest.mark.parametrize("size", [(128, 96), (100, 90)])
def test_sizes(size):
    network = make(make_spec(2, patch=(32, 32), outputs=9, base=8)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *size)).shape == (1, 9, *size)


def test_equal_queries_and_keys_give_the_mean_of_the_values():
    torch.manual_seed(0)
    layer, x = MapAttention(8, 2), torch.randn(2, 8, 4, 3)
    values = layer.value(x.flatten(2).mT).mean(1)
    torch.nn.init.zeros_(layer.query.weight)
    torch.nn.init.zeros_(layer.key.weight)
    torch.testing.assert_close(layer.attend(x), values[:, :, None, None].expand(2, 8, 4, 3))


def test_only_positions_tell_the_order():
    torch.manual_seed(0)
    layer, x, order = MapAttention(8, 2), torch.randn(1, 8, 4, 3), torch.randperm(12)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    for method, follows in ((layer.attend, True), (layer, False)):
        same = method(shuffled).flatten(2) - method(x).flatten(2)[..., order]
        assert (same.abs().max() < 1e-5) == follows


def test_the_attention_replaces_the_bottom_unless_asked():
    spec = make_spec(2, stages=3, patch=(16, 16), base=8)
    plain, residual = (make(spec.model_copy(update={"options": o})).eval() for o in OPTIONS)
    residual.load_state_dict(plain.state_dict())
    for network in (plain, residual):
        torch.nn.init.zeros_(network.attention.value.weight)
    x = torch.randn(1, 1, 16, 16)
    assert (plain.encode(x)[-1] == 0).all()
    assert residual.encode(x)[-1].abs().max() > 0


OPTIONS = ({}, {"mhsa_residual": True})


def test_norms_and_their_defaults():
    for dims, options, kind in (
        (2, {}, torch.nn.BatchNorm2d),
        (3, {}, torch.nn.InstanceNorm3d),
        (2, {"norm": "instance"}, torch.nn.InstanceNorm2d),
        (3, {"norm": "batch"}, torch.nn.BatchNorm3d),
    ):
        network = make(make_spec(dims, stages=2, patch=(8,) * dims, base=4, **options))
        norms = {type(module) for module in network.modules() if "Norm" in type(module).__name__}
        assert norms == {kind}


def test_gates_learn_to_differ_between_places():
    torch.manual_seed(0)
    network = make(make_spec(2, stages=3, patch=(16, 16), base=8, outputs=2, deep=False))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # so that few steps are enough for the statistics of prediction
    x = torch.randn(4, 1, 16, 16)
    target = torch.zeros(4, 16, 16, dtype=torch.long)
    x[:, :, 4:10, 4:10] += 2
    target[:, 4:10, 4:10] = 1
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), target).backward()
        optimizer.step()
    found = []
    handle = network.gates[0].to_gate.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        logits = network.eval()(x)
        handle.remove()
        assert found[0].flatten(2).std(-1).max() > 0.01
        network.gates[0].gate = lambda y, skip: torch.ones_like(y[:, :8])  # the gate swapped for the identity
        assert (network(x) - logits).abs().max() > 1e-2


def test_a_coarse_axis_keeps_its_size():
    spec = make_spec(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), patch=(6, 16, 16), base=4)
    network = make(spec).eval()
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 6, 16, 16))
        assert network.decode(features).shape == (1, 3, 6, 16, 16)
    assert [tuple(feature.shape[1:]) for feature in features] == [(4, 6, 16, 16), (8, 6, 8, 8), (16, 3, 4, 4)]


def test_heads_divide_the_widths_and_are_not_narrow():
    network = make(make_spec(2, stages=4, patch=(16, 16), base=6, heads=8))  # widths 6, 12, 24, 48
    assert [gate.heads for gate in network.gates] == [1, 1, 3]
    assert network.attention.heads == 6
    assert {gate.heads for gate in reference(8).gates} == {8}
    assert {gate.heads for gate in reference(1).gates} == {1}


def test_the_cap_is_logged(caplog):
    tell.cache_clear()
    with caplog.at_level(logging.INFO, "autoseg.architectures.u_transformer"):
        for _ in range(2):  # is told once
            make(make_spec(2, stages=3, patch=(32, 32), base=4, max_tokens=90))
    assert caplog.messages == ["u_transformer: the gate of skip 0 attends on a grid averaged by (2, 2)"]


@pytest.mark.parametrize("options", [{"heads": 0}, {"max_tokens": 0}, {"max_tokens": "many"}, {"gates": 1}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(UserError):
        make(make_spec(2, stages=2, patch=(8, 8), base=4, **options))
