"""Rates and weight decay of single parts of a network: rates those of its authors in full runs, decay in all."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autoseg import plugins
from autoseg.architecture import Architecture
from autoseg.benchmarking.recipes import recipe_of
from autoseg.conformance.architecture import example_spec
from autoseg.training import train
from autoseg.training.checkpoint import Progress, State, load_state, save_state
from autoseg.training.loop import rate_factor
from autoseg.training.recipe import published, recipe_for, suited
from autoseg.training.trainer import Trainer


class Parts(Architecture):
    """Three parts, one of which learns ten times as fast, and one a tenth as fast; biases do not decay."""

    def __init__(self):
        nn.Module.__init__(self)
        self.body, self.head, self.stem = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 2, bias=False)

    def rate_factors(self, *, pretrained):
        return {"head.": 10.0, "stem.": 0.1 if pretrained else 1.0}

    def undecayed(self):
        return {"head.bias", "body.bias"}


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


def groups(trainer, network):
    """Return what the optimiser has: (rate, decay, names of the parameters) of every group, in their order."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    made = trainer.build_optimizers({"network": network})["network"].param_groups
    return [(group["lr"], group["weight_decay"], [names[id(each)] for each in group["params"]]) for group in made]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "nadam"])
def test_what_the_authors_leave_out_does_not_decay(optimizer):
    told = {"optimizer": optimizer, "learning_rate": 2e-3, "weight_decay": 0.5}
    everything = ["body.weight", "body.bias", "head.weight", "head.bias", "stem.weight"]
    assert groups(a_trainer(**told), Parts()) == [(2e-3, 0.5, everything)]  # the common recipe asks for nothing
    assert groups(a_trainer(**told, own_decay=True), Parts()) == [
        (2e-3, 0.5, ["body.weight", "head.weight", "stem.weight"]), (2e-3, 0.0, ["body.bias", "head.bias"])
    ]  # fmt: skip
    assert groups(a_trainer(**told, own_decay=True, own_rates=True, pretrained=True), Parts()) == [
        (2e-3, 0.5, ["body.weight"]), (2e-3, 0.0, ["body.bias"]), (2e-2, 0.5, ["head.weight"]),
        (2e-2, 0.0, ["head.bias"]), (pytest.approx(2e-4), 0.5, ["stem.weight"]),
    ]  # fmt: skip
    (group,) = a_trainer(**told, own_decay=True).parameter_groups(nn.Linear(2, 2))  # no architecture
    assert "weight_decay" not in group


def test_a_step_shrinks_only_what_decays():
    network = Parts()
    trainer = a_trainer(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, own_decay=True)
    optimizer = trainer.build_optimizers({"network": network})["network"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    left = {name: parameter.mean().item() for name, parameter in network.named_parameters()}
    shrunk = {name: 1.0 if name.endswith("bias") else 0.95 for name in left}
    assert left == pytest.approx(shrunk)


def test_a_checkpoint_of_several_groups_comes_back(tmp_path):
    told = {"optimizer": "adamw", "weight_decay": 0.5, "own_decay": True, "own_rates": True}

    def made(seed, steps):
        torch.manual_seed(seed)
        network = Parts()
        optimizer = a_trainer(**told).build_optimizers({"network": network})["network"]
        for _ in range(steps):
            step(network, optimizer)
        return network, optimizer

    def step(network, optimizer):
        for size, parameter in enumerate(network.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, float(size))
        optimizer.step()

    (network, optimizer), (other, others) = made(0, 3), made(1, 1)
    save_state(tmp_path, State({"network": network}, {"network": optimizer}, Progress(step=3)))
    load_state(tmp_path, State({"network": other}, {"network": others}, Progress()))
    assert len(others.param_groups) == 4
    for group, again in zip(optimizer.param_groups, others.param_groups, strict=True):
        assert (group["lr"], group["weight_decay"]) == (again["lr"], again["weight_decay"])
    step(network, optimizer)
    step(other, others)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def undecayed_in(recipe, name):
    """Return the names of what does not decay in a network that is trained by a recipe."""
    kind = plugins.load("architecture", name)
    with torch.device("meta"):
        network = kind(example_spec(kind, 2))
    trainer = a_trainer(**{**recipe, "own_rates": False, "weight_decay": 0.5})
    decays = {each for _, decay, names in groups(trainer, network) if decay for each in names}
    return {each for each, _ in network.named_parameters()} - decays, network


def of_norms(network):
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    layers = ((prefix, layer) for prefix, layer in network.named_modules() if isinstance(layer, norms))
    return {f"{prefix}.{name}" for prefix, layer in layers for name, _ in layer.named_parameters()}


UNDECAYED = {  # by the cards
    "mcanet": of_norms,
    "lightm_unet": lambda network: {
        name for name, _ in network.named_parameters() if name.rpartition(".")[2] in ("A_log", "D")
    },
    "vm_unet": lambda network: {
        name for name, _ in network.named_parameters() if name.rpartition(".")[2] in ("A_log", "D", "dt_bias")
    },
    "unet_plus_plus": lambda network: {
        name for name, parameter in network.named_parameters()
        if parameter.ndim == 1 or name.startswith(("ups.", "heads."))
    },
}  # fmt: skip


@pytest.mark.parametrize("steps", [1000, 10_000, 250_000])
@pytest.mark.parametrize("name", UNDECAYED)
def test_networks_leave_out_of_decay_what_their_cards_name(name, steps):
    kind, common = plugins.load("architecture", name), recipe_for(steps)
    for recipe in (suited(kind.recipe, common), published(kind.published_recipe())):
        found, network = undecayed_in(recipe, name)
        assert found == UNDECAYED[name](network)
        assert found
    common_too = recipe_of("common", steps, common, SimpleNamespace(recipe=kind.recipe), Trainer, Trainer)
    assert undecayed_in(common_too, name)[0] == set()


@pytest.mark.parametrize("found", plugins.list_plugins("architecture"), ids=lambda found: found.name)
def test_a_recipe_asks_for_what_the_network_names(found):
    kind = plugins.load("architecture", found.name)
    assert (kind.undecayed is not Architecture.undecayed) == kind.recipe.get("own_decay", False)
    assert (kind.rate_factors is not Architecture.rate_factors) == kind.recipe.get("own_rates", False)


def test_suited_keeps_what_does_not_decay_with_the_decay():
    own = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.1, "own_decay": True}
    assert suited(own, recipe_for(100)) == {**own, "learning_rate": 1e-3}
    assert suited({**own, "optimizer": "sgd"}, recipe_for(100)) == {}


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
        made.append(sorted({group["lr"] for group in optimizer.param_groups}))
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
