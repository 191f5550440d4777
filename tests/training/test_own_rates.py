"""Learning rates of single parts of a network: those of its authors in full runs, one for all in shorter ones."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autoseg import plugins
from autoseg.architecture import Architecture
from autoseg.conformance.architecture import example_spec
from autoseg.training import train
from autoseg.training.loop import rate_factor
from autoseg.training.recipe import recipe_for, suited
from autoseg.training.trainer import Trainer


class Parts(Architecture):
    """Three parts, one of which learns ten times as fast, and one a tenth as fast."""

    def __init__(self):
        nn.Module.__init__(self)
        self.body, self.head, self.stem = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 2, bias=False)

    def rate_factors(self, *, pretrained):
        return {"head.": 10.0, "stem.": 0.1 if pretrained else 1.0}


def a_trainer(*, pretrained=False, **settings):
    """A trainer without data; only its settings matter here."""
    trainer = object.__new__(Trainer)
    trainer.context = SimpleNamespace(pretrained=pretrained)
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def rates(trainer, network):
    """Return {part of the network: its learning rates}, as the optimiser has them."""
    groups = trainer.build_optimizers({"network": network})["network"].param_groups
    of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(of) == len(list(network.parameters()))  # each in one group
    found: dict[str, set[float]] = {}
    for name, parameter in network.named_parameters():
        found.setdefault(name.partition(".")[0], set()).add(of[id(parameter)])
    return {part: each.pop() if len(each) == 1 else each for part, each in found.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parts_have_the_rates_that_were_asked_for(optimizer):
    told = {"optimizer": optimizer, "learning_rate": 2e-3}
    assert rates(a_trainer(**told), Parts()) == {"body": 2e-3, "head": 2e-3, "stem": 2e-3}  # by default
    own = rates(a_trainer(**told, own_rates=True), Parts())
    assert own == pytest.approx({"body": 2e-3, "head": 2e-2, "stem": 2e-3})
    own = rates(a_trainer(**told, own_rates=True, pretrained=True), Parts())
    assert own == pytest.approx({"body": 2e-3, "head": 2e-2, "stem": 2e-4})


def test_one_rate_is_one_group_with_the_parameters_in_their_order():
    network = Parts()
    (group,) = a_trainer().parameter_groups(network)
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in network.parameters()]


def test_a_module_that_is_no_architecture_has_one_rate():
    (group,) = a_trainer(own_rates=True).parameter_groups(nn.Linear(2, 2))
    assert group["lr"] == 0.01


def test_a_step_moves_each_part_by_its_rate():
    network = Parts()
    trainer = a_trainer(learning_rate=1e-3, momentum=0.5, weight_decay=0.0, own_rates=True, pretrained=True)
    optimizer = trainer.build_optimizers({"network": network})["network"]
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: float((before[name] - parameter).detach().mean()) for name, parameter in network.named_parameters()}
    assert moved["body.weight"] == pytest.approx(1.5e-3, rel=1e-3)  # Nesterov: 1 + momentum
    assert moved["head.bias"] == pytest.approx(1.5e-2, rel=1e-3)
    assert moved["stem.weight"] == pytest.approx(1.5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "pretrained", "steps", "expected"),
    [
        ("mcanet", False, 250_000, {"stages": 5e-4, "head": 5e-3}),
        ("mcanet", True, 250_000, {"stages": 6e-5, "head": 6e-4}),
        ("mcanet", True, 1000, {"stages": 5e-3, "head": 5e-3}),  # raised ten times, for all parts
        ("meddinov3", False, 250_000, {"backbone": 3e-4, "decoder": 3e-4}),
        ("meddinov3", True, 250_000, {"backbone": 3e-5, "decoder": 3e-4}),
        ("meddinov3", True, 10_000, {"backbone": 1.5e-3, "decoder": 1.5e-3}),
    ],
)
def test_networks_have_their_published_rates_in_full_runs(name, pretrained, steps, expected):
    kind = plugins.load("architecture", name)
    common = recipe_for(steps)
    trainer = a_trainer(pretrained=pretrained, **{**common, **suited(kind.recipe, common)})
    assert rates(trainer, kind(example_spec(kind, 2))) == pytest.approx(expected)
    assert rate_factor(trainer, 0, 0.0) <= 1.0


def test_suited_ends_the_rates_of_parts_where_it_raises_the_rate():
    own = {"optimizer": "adamw", "learning_rate": 1e-4, "own_rates": True}
    assert suited(own, recipe_for(20_000)) == own
    assert suited(own, recipe_for(100)) == {**own, "learning_rate": 1e-3, "own_rates": False}
    assert suited({"optimizer": "sgd", "own_rates": True}, recipe_for(100)) == {}


@pytest.mark.parametrize("found", plugins.list_plugins("architecture"), ids=lambda found: found.name)
def test_every_factor_is_of_a_part_that_is_there(found):
    kind = plugins.load("architecture", found.name)
    if kind.rate_factors is Architecture.rate_factors:
        return
    with torch.device("meta"):
        network = kind(example_spec(kind, kind.dims[0]))
    for pretrained in (False, True):
        for start, factor in network.rate_factors(pretrained=pretrained).items():
            assert factor > 0
            assert any(name.startswith(start) for name, _ in network.named_parameters())


def test_a_run_from_given_weights_has_the_rates_of_pretrained_parts(scratch, monkeypatch):
    made, make = [], Trainer.make_optimizer

    def noted(trainer, parameters):
        optimizer = make(trainer, parameters)
        made.append(sorted(group["lr"] for group in optimizer.param_groups))
        return optimizer

    def run(name, **weights):
        (folder,) = train(
            "Dataset004_Hippocampus", "2d", "0", plans_name="tiny", architecture="mcanet", device="cpu", workers=1,
            workspace=scratch, name=name, settings={"steps": 2, "own_rates": True, "learning_rate": 5e-4}, **weights,
        )  # fmt: skip
        return folder

    monkeypatch.setattr(Trainer, "make_optimizer", noted)
    run("second", pretrained=run("first"))
    assert made[0] == pytest.approx([5e-4, 5e-3])
    assert made[-1] == pytest.approx([6e-5, 6e-4])
