"""Adaptation to an image by entropy: what it changes, by how much, and that nothing of it stays."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.inference import Adaptation, Predictor, adapted, sliding_window_logits
from autoseg.inference.adaptation import entropy, norm_parameters


def make_network(*norms, dims=3, outputs=3):
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    layers = [conv(1, 4, 3, padding=1)]
    for norm in norms or (nn.InstanceNorm3d(4, affine=True),):
        layers += [norm, nn.LeakyReLU(), conv(4, 4, 3, padding=1)]
    return nn.Sequential(*layers, conv(4, outputs, 1)).eval()


def image(*shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def adapt(network, values, patch=(8, 8, 8), **options):
    """Return the entropies and the state while the network is adapted."""
    regions = options.pop("regions", False)
    with adapted([network], values, patch, Adaptation(**options), regions=regions) as entropies:
        return entropies[0], state_of(network)


def test_entropies():
    even = entropy(torch.zeros(2, 5, 4, 4, 4))
    assert even.shape == (2, 4, 4, 4)
    torch.testing.assert_close(even, torch.full_like(even, math.log(5)))
    sure = entropy(torch.tensor([100.0, 0.0, 0.0]).reshape(1, 3, 1))
    assert sure.abs().item() < 1e-6
    two = entropy(torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1), regions=True)  # probabilities 1/2 and 3/4
    assert two.item() == pytest.approx(math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-5)
    assert entropy(torch.tensor([80.0, -80.0]).reshape(1, 2, 1), regions=True).abs().item() < 1e-6


def test_the_norms_and_nothing_else():
    network = nn.ModuleDict(
        {
            "layer": nn.LayerNorm(3), "group": nn.GroupNorm(1, 2), "batch": nn.BatchNorm2d(5),
            "instance": nn.InstanceNorm3d(7, affine=True), "bare": nn.InstanceNorm2d(9), "conv": nn.Conv2d(1, 2, 3),
        }
    )  # fmt: skip
    names = {f"{name}.{part}" for name in ("layer", "group", "batch", "instance") for part in ("weight", "bias")}
    assert norm_parameters(network).keys() == names


def test_entropy_falls_and_only_norms_change_and_are_put_back():
    network = make_network(nn.InstanceNorm3d(4, affine=True), nn.GroupNorm(2, 4), nn.BatchNorm3d(4))
    flags = [parameter.requires_grad for parameter in network.parameters()]
    before = state_of(network)
    entropies, during = adapt(network, image(12, 9, 8), steps=5, learning_rate=0.05)
    assert len(entropies) == 6
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] < entropies[0]
    changed = {name for name, tensor in during.items() if not torch.equal(tensor, before[name])}
    assert changed == norm_parameters(network).keys()  # running statistics are not among them
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def test_one_step_is_gradient_descent_on_the_mean_entropy_of_all_tiles():
    network, values = make_network(), image(12, 8, 8)
    _, during = adapt(network, values, steps=1, learning_rate=0.1)
    twin = copy.deepcopy(network)
    tiles = torch.stack([values[:, :8], values[:, 4:]])  # at half a patch from one another
    entropy(twin(tiles)).mean().backward()
    for name in ("1.weight", "1.bias"):
        parameter = twin.get_parameter(name)
        torch.testing.assert_close(during[name], parameter - 0.1 * parameter.grad)


def test_padding_counts_for_nothing():
    network, values = make_network(), image(8, 8, 5)
    entropies, during = adapt(network, values, steps=1, learning_rate=0.1)
    twin = copy.deepcopy(network)
    loss = entropy(twin(nn.functional.pad(values, (1, 2))[None]))[..., 1:6].mean()
    loss.backward()
    assert entropies[0] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(during["1.bias"], twin[1].bias - 0.1 * twin[1].bias.grad)


def test_slices_of_a_2d_network():
    network, values = make_network(nn.InstanceNorm2d(4, affine=True), dims=2), image(3, 8, 8)
    entropies, _ = adapt(network, values, (8, 8), steps=1, learning_rate=0.1)
    with torch.no_grad():
        expected = entropy(network(values.movedim(1, 0))).mean()
    assert entropies[0] == pytest.approx(expected.item(), rel=1e-5)


def test_batch_norms_see_the_statistics_of_the_tiles():
    network, values = make_network(nn.BatchNorm3d(4)), 5 + 3 * image(8, 8, 8)
    entropies, _ = adapt(network, values, steps=1)
    with torch.no_grad():
        assert entropies[0] == pytest.approx(entropy(copy.deepcopy(network).train()(values[None])).mean().item())
        assert entropies[0] != pytest.approx(entropy(network(values[None])).mean().item(), rel=1e-3)


@pytest.mark.parametrize("options", [{"steps": 0}, {"learning_rate": 0.0}])
def test_nothing_happens_without_steps_or_rate(options):
    network, before = make_network(), state_of(make_network())
    entropies, during = adapt(network, image(8, 8, 8), **options)
    assert entropies == []
    assert all(torch.equal(during[name], tensor) for name, tensor in before.items())


def test_online_keeps_what_was_learned():
    network, before = make_network(), state_of(make_network())
    _, during = adapt(network, image(8, 8, 8), online=True)
    assert not torch.equal(network[1].weight, before["1.weight"])
    assert torch.equal(network[1].weight, during["1.weight"])


def test_a_network_is_put_back_after_an_error():
    network, before = make_network(), state_of(make_network())
    with pytest.raises(RuntimeError, match="stopped"), adapted([network], image(8, 8, 8), (8, 8, 8), Adaptation()):
        raise RuntimeError("stopped")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


class FullDevice(nn.Module):
    """Runs out of memory for more than `most` patches at a time."""

    def __init__(self, most, error):
        super().__init__()
        self.inner, self.most, self.error = make_network(), most, error

    def forward(self, patches):
        if len(patches) > self.most:
            raise self.error
        return self.inner(patches)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_a_full_device_takes_one_tile_at_a_time(error):
    values = image(8, 8, 12)
    found, _ = adapt(FullDevice(1, error).eval(), values)
    assert found == pytest.approx(adapt(make_network(), values)[0], rel=1e-5)
    with pytest.raises(UserError, match="too small to adapt to one patch"):
        adapt(FullDevice(0, error).eval(), values)


def test_other_errors_of_a_device_are_raised():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        adapt(FullDevice(0, RuntimeError("an illegal memory access")).eval(), image(8, 8, 8))


def test_a_collapse_is_taken_back(caplog, monkeypatch):
    monkeypatch.setattr("autoseg.inference.adaptation.COLLAPSE", 1.2)
    network = make_network(outputs=2)
    with caplog.at_level(logging.WARNING):
        entropies, during = adapt(network, image(8, 8, 8), steps=5, learning_rate=1e4)
    assert "adaptation stopped after step 1" in caplog.text
    assert len(entropies) == 2
    assert torch.equal(during["1.weight"], network[1].weight)


def test_without_affine_norms_a_warning_tells(caplog):
    with caplog.at_level(logging.WARNING):
        assert adapt(make_network(nn.InstanceNorm3d(4)), image(8, 8, 8))[0] == []
    assert "not adapted" in caplog.text


def test_regions_fall_in_entropy_too():
    entropies, _ = adapt(make_network(outputs=2), image(8, 8, 8), regions=True, steps=2, learning_rate=0.05)
    assert entropies == sorted(entropies, reverse=True)


def test_wrong_settings_are_told():
    with pytest.raises(UserError, match="0 or more"):
        Adaptation(steps=-1)


def load(folder, **settings):
    return Predictor.load(folder, device="cpu", precision="fp32", **settings)


def test_predictors_adapt_every_fold_to_every_image(model_writer, tmp_path):
    folder = model_writer(tmp_path, {"folds": ("0", "1"), "mirror_axes": (0,)})
    plain, none = load(folder), load(folder, adaptation=Adaptation(steps=0))
    strong = load(folder, adaptation=Adaptation(steps=2, learning_rate=0.5))
    assert len({predictor.identity for predictor in (plain, none, strong)}) == 3
    networks = strong.members[0].networks
    before = [state_of(network) for network in networks]
    values = 100 + 20 * image(10, 20, 18).numpy()
    ask = {"save_probabilities": True}
    results = [each.predict_array(values, (1, 1, 1), **ask).probabilities for each in (plain, none, strong)]
    assert (results[0] == results[1]).all()
    assert abs(results[2] - results[0]).max() > 1e-3
    again = strong.predict_array(values, (1, 1, 1), **ask).probabilities
    assert (again == results[2]).all()  # nothing of the first time stays
    for network, kept in zip(networks, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_the_prediction_is_that_of_the_adapted_network():
    network, values = make_network(), image(12, 9, 8)
    options = {"num_outputs": 3, "precision": "fp32"}
    plain = sliding_window_logits(network, values, (8, 8, 8), **options)
    with adapted([network], values, (8, 8, 8), Adaptation(learning_rate=0.5)) as entropies:
        better = sliding_window_logits(network, values, (8, 8, 8), **options)
    assert len(entropies[0]) == 4
    assert entropy(better[None]).mean() < entropy(plain[None]).mean()
    assert torch.equal(sliding_window_logits(network, values, (8, 8, 8), **options), plain)
