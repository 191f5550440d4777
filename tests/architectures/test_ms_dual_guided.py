"""Multi-scale self-guided attention: published counts, both passes, gates, sizes from the plan."""

import math
import sys
from functools import cache

import pytest
import torch
from autoseg.architectures.ms_dual_guided import SemanticModule, semantic_pools
from network_specs import count, make, make_spec
from safetensors.torch import save_file

from autoseg.errors import UserError
from autoseg.plugins import load
from autoseg.training.pretrained import load_pretrained

NAME = "ms_dual_guided"


@cache
def published():
    with torch.device("meta"):
        return make(NAME, make_spec(2, 6, patch=(256, 256), outputs=5, backbone="resnext101"))


def test_published_parameter_counts():
    network = published()
    assert count(network) == 103_556_063
    assert count(network.backbone) == 86_736_064
    assert [count(each.semantic) for each in network.passes] == [6_970_496] * 2
    assert {count(layer) for each in network.passes for layer in each.position} == {116_179}
    assert {count(layer) for each in network.passes for layer in each.channel} == {110_979}
    assert count(network.fuse) == 188_995
    assert network.backbone.conv1.kernel_size == (7, 7)
    assert network.backbone.layer3[0].conv2.groups == 32


def test_shapes_of_the_published_network(monkeypatch):
    module = sys.modules[load("architecture", NAME).__module__]
    monkeypatch.setattr(module, "RESNEXT_BLOCKS", (1, 1, 1, 1))  # shapes do not depend on the depth
    with torch.no_grad():
        spec = make_spec(2, 6, patch=(64, 64), outputs=5, backbone="resnext101")
        network = make(NAME, spec)
        calls = record(network)
        x = torch.zeros(2, 1, 64, 64)
        features = network.train().encode(x)
        outputs = network.decode(features)
        assert network.eval().decode([feature[:1] for feature in features]).shape == (1, 5, 64, 64)
    assert [tuple(output.shape) for output in outputs] == [(2, 5, 64, 64)] * 8
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    for seen, code, decoded in calls[:8]:
        assert code.shape == (16_384,)
        assert seen.shape == decoded.shape == (2, 128, 16, 16)


def record(network):
    """Return the list that the calls of the semantic modules are added to."""
    calls = []
    for each in network.passes:
        each.semantic.register_forward_hook(lambda _, inputs, outputs: calls.append((inputs[0], *outputs)))
    return calls


def small(**options):
    torch.manual_seed(0)
    return make(NAME, make_spec(2, 3, patch=(32, 32), base=8, **options))


def test_semantic_modules_are_shared_by_scales_but_not_by_passes():
    network = small()
    first, second = (each.semantic for each in network.passes)
    assert first is not second
    calls = []
    first.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, 32, 32))
    assert len(calls) == 2  # scales


def test_attention_starts_as_the_identity_inside_its_wrapper():
    network = small().eval()
    u = torch.randn(1, 32, 16, 16)
    for layer in (*network.passes[0].position, *network.passes[1].channel):
        convolutions = torch.nn.Sequential(*layer[:3], *layer[4:])
        torch.testing.assert_close(layer(u), convolutions(u))
        assert layer[3].gamma == 0
        torch.nn.init.ones_(layer[3].gamma)
        assert not torch.allclose(layer(u), convolutions(u))


def test_an_open_gate_leaves_plain_dual_attention():
    network = small()
    each = network.passes[0]
    for gate in each.gates:
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.ones_(gate.bias)
        gate.requires_grad_(False)
    maps = [torch.randn(2, 32, 16, 16), torch.randn(2, 32, 16, 16)]
    attended = each.eval()(maps)
    for scale, u in enumerate(maps):
        plain = each.out[scale](each.channel[scale](u) + each.position[scale](u))
        torch.testing.assert_close(attended[scale], plain)
    sum(a.square().mean() for a in attended).backward()
    assert all((parameter.grad == 0).all() for parameter in each.semantic.parameters())


def test_the_second_pass_sees_the_fused_map_weighted_by_the_first():
    network = small().eval()
    calls = record(network)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        features = network.encode(x)
        logits = network.decode(features)
        first, second = (calls[:2], calls[2:])
        maps = [network.project[0](features[0]), network.project[1](features[1])]
        maps[1] = torch.nn.functional.interpolate(maps[1], size=(16, 16), mode="bilinear", align_corners=False)
        fused = network.fuse(torch.cat([maps[1], maps[0]], 1))
        inputs = [torch.cat([each, fused], 1) for each in maps]
        torch.testing.assert_close(first[1][0], inputs[0])  # coarse to fine
        attention = network.passes[0](inputs)
        inputs = [torch.cat([each, a * fused], 1) for each, a in zip(maps, attention, strict=True)]
        torch.testing.assert_close(second[0][0], inputs[1])
        refined = network.passes[1](inputs)
        mean = (network.heads[0](refined[0]) + network.heads[1](refined[1])) / 2
        mean = torch.nn.functional.interpolate(mean, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, mean)


def test_prediction_is_the_mean_of_the_late_outputs():
    network = small(norm="instance").train()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        outputs = network(x)
        assert len(outputs) == 4
        torch.testing.assert_close(network.eval()(x), (outputs[0] + outputs[1]) / 2)
    assert network.output_weights() == [0.25] * 4
    single = small(deep=False).train()
    assert isinstance(single(x), torch.Tensor)
    assert count(network) - count(single) == 2 * (16 * 3 + 3)


def test_semantic_modules_learn_to_give_back_what_they_see():
    network = small(norm="instance").train()
    calls, x = record(network), torch.randn(2, 1, 32, 32)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    errors = []
    for _ in range(15):
        calls.clear()
        outputs = network(x)
        error = torch.stack([(seen - decoded).square().mean() for seen, _, decoded in calls]).sum()
        target = (x[:, 0] > 0).long()
        loss = 0.1 * error + sum(torch.nn.functional.cross_entropy(output, target) for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.95 * errors[0]


def test_initialisation():
    network = small()
    conv = network.passes[0].semantic.down[0][3]
    limit = (2 / (9 * (conv.in_channels + conv.out_channels))) ** 0.5  # Xavier's deviation
    assert conv.weight.std().item() == pytest.approx(limit, rel=0.05)
    assert (conv.bias == 0).all()
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, abs=0.005)


def test_poolings_of_the_semantic_module():
    assert semantic_pools((16, 8)) == [(2, 2), (2, 2)]
    assert semantic_pools((4, 4)) == [(2, 2), (1, 1)]
    assert semantic_pools((4, 32, 32)) == [(1, 2, 2), (1, 2, 2)]
    module = SemanticModule(4, semantic_pools((16, 16)), "batch").eval()
    for shape in ((1, 4, 16, 16), (1, 4, 15, 18), (1, 4, 3, 1)):
        code, decoded = module(torch.randn(shape))
        assert decoded.shape == shape
        assert code.numel() == 16 * math.prod(math.ceil(edge / 4) for edge in shape[2:])


def test_other_images_than_the_planned_ones():
    network = small(deep=False).eval()
    with torch.no_grad():
        for size in ((8, 4), (36, 20)):
            assert network(torch.zeros(1, 1, *size)).shape == (1, 3, *size)


def test_the_finest_scale():
    adapt = load("architecture", NAME).adapt_spec
    assert adapt(make_spec(2, 7, patch=(256, 256))).options["first"] == 2  # the second stage has 128 x 128 positions
    assert adapt(make_spec(2, 6, patch=(128, 128))).options["first"] == 1
    assert adapt(make_spec(2, 3, patch=(256, 256))).options["first"] == 1  # else one scale would be left
    assert adapt(make_spec(2, 6, patch=(256, 256), backbone="resnext101")).options["first"] == 1  # a quarter
    network = make(NAME, make_spec(2, 4, patch=(256, 256), first=1, base=4))
    assert len(network.heads) == 3
    assert network.fuse[0].in_channels == 3 * 8


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make(NAME, make_spec(strides=strides, patch=(8, 16, 16), base=8)).eval()
    with torch.no_grad():
        x = torch.zeros(1, 1, 8, 16, 16)
        assert [tuple(feature.shape[2:]) for feature in network.encode(x)] == [(8, 8, 8), (4, 4, 4)]
        assert network(x).shape == (1, 3, 8, 16, 16)


def test_weights_of_a_classifier_are_the_backbones(tmp_path, monkeypatch):
    module = sys.modules[load("architecture", NAME).__module__]
    monkeypatch.setattr(module, "RESNEXT_WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(module, "RESNEXT_BLOCKS", (1, 1, 1, 1))
    classifier = module.resnext101(3, "batch")
    names = set(classifier.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer4.0.conv2.weight", "layer1.0.downsample.0.weight"} <= names
    save_file(classifier.state_dict() | {"fc.weight": torch.zeros(5, 32)}, tmp_path / "resnext.safetensors")
    network = make(NAME, make_spec(2, 5, patch=(64, 64), backbone="resnext101"))
    rows = {row.name: row.status for row in load_pretrained(network, tmp_path / "resnext.safetensors")}
    ours = network.backbone.state_dict()
    assert rows["backbone.conv1.weight"] == "adapted"
    torch.testing.assert_close(ours["conv1.weight"], classifier.conv1.weight.sum(1, keepdim=True))  # one channel
    assert all(
        torch.equal(ours[name], tensor) for name, tensor in classifier.state_dict().items() if name != "conv1.weight"
    )
    assert {status for name, status in rows.items() if not name.startswith("backbone.")} == {"fresh"}


def test_wrong_use_is_told():
    with pytest.raises(UserError, match="resnext101 is 2D"):
        make(NAME, make_spec(3, 4, backbone="resnext101"))
    with pytest.raises(UserError, match="stages below the first"):
        make(NAME, make_spec(2, 1, patch=(8, 8), base=2))
