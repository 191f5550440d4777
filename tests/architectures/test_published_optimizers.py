"""The optimisers of networks are those of their authors: class, rates, betas, decay, loss, schedule by their cards."""

import math

import pytest
import torch

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.training.annealing import annealed
from autoseg.training.loop import rate_factor
from autoseg.training.recipe import published, recipe_for, suited
from autoseg.training.trainer import Trainer

ADAM, ADAMW, NADAM, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.SGD
# network: class, learning rate, (betas, epsilon) or (momentum, nesterov), weight decay, (Dice, cross-entropy)
CARDS = {
    "diamant": (ADAM, 5e-4, ((0.9, 0.999), 1e-8), 1e-4, (1.0, 1.0)),
    "fmunet": (ADAM, 1e-3, ((0.9, 0.999), 1e-8), 1e-5, (0.5, 0.5)),
    "focal_unet": (ADAMW, 1e-4, ((0.5, 0.99), 1e-8), 0.01, (0.6, 0.4)),
    "hi_end_mae": (ADAMW, 1e-4, ((0.9, 0.999), 1e-8), 1e-5, (1.0, 1.0)),
    "hiformer": (SGD, 0.01, (0.9, False), 1e-4, (0.6, 0.4)),
    "lightm_unet": (ADAM, 1e-4, ((0.9, 0.999), 1e-5), 1e-5, (1.0, 1.0)),
    "mcanet": (ADAMW, 5e-4, ((0.9, 0.999), 1e-8), 0.01, (0.0, 1.0)),
    "meddinov3": (ADAMW, 3e-4, ((0.9, 0.98), 1e-8), 0.05, (1.0, 1.0)),
    "medvisionllama": (ADAM, 2e-3, ((0.9, 0.999), 1e-8), 0.0, (0.0, 0.5)),
    "mpu_net": (ADAM, 1e-4, ((0.9, 0.999), 1e-8), 0.0, (1.0, 1.0)),
    "ms_dual_guided": (ADAM, 1e-3, ((0.9, 0.99), 1e-8), 0.0, (0.0, 1.0)),
    "msvm_unet": (ADAMW, 5e-4, ((0.9, 0.999), 1e-8), 1e-3, (0.6, 0.4)),
    "paratranscnn": (SGD, 0.01, (0.9, False), 1e-4, (0.5, 0.5)),
    "pct_net": (ADAM, 1e-3, ((0.9, 0.999), 1e-8), 1e-5, (0.5, 0.5)),
    "primus": (ADAMW, 3e-4, ((0.9, 0.98), 1e-8), 0.05, (1.0, 1.0)),
    "resunet_plus_plus": (NADAM, 1e-4, ((0.9, 0.999), 1e-8), 0.0, (1.0, 0.0)),
    "segmamba": (SGD, 0.01, (0.99, True), 3e-5, (0.0, 1.0)),
    "swin_bob": (ADAMW, 1e-4, ((0.9, 0.999), 1e-8), 1e-5, (1.0, 1.0)),
    "swin_smt": (ADAMW, 1e-4, ((0.9, 0.999), 1e-8), 1e-5, (1.0, 1.0)),
    "swin_unet": (ADAMW, 1e-3, ((0.9, 0.95), 1e-8), 0.05, (1.0, 1.0)),
    "swin_unetr": (ADAMW, 1e-4, ((0.9, 0.999), 1e-8), 1e-5, (1.0, 1.0)),
    "u_transformer": (ADAM, 1e-4, ((0.9, 0.999), 1e-8), 0.0, (1.0, 1.0)),
    "unet_plus_plus": (ADAM, 3e-4, ((0.9, 0.999), 1e-8), 2e-4, (1.0, 0.5)),  # the decay is twice an L2 penalty of 1e-4
    "vm_unet": (ADAMW, 1e-3, ((0.9, 0.999), 1e-8), 0.01, (1.0, 1.0)),
    "y_net": (ADAM, 5e-4, ((0.9, 0.999), 1e-8), 1e-4, (1.0, 1.0)),
    "plain_unet": (SGD, 0.01, (0.99, True), 3e-5, (1.0, 1.0)),  # nnU-Net's
    "d_former": (SGD, 0.01, (0.99, True), 3e-5, (1.0, 1.0)),
    "xlstm_unet": (SGD, 0.01, (0.99, True), 3e-5, (1.0, 1.0)),
}
EPOCHS = {"focal_unet": 127, "hi_end_mae": 500, "msvm_unet": 300, "swin_unet": 150, "swin_bob": 1000, "mcanet": 80_000,
          "meddinov3": 1000, "pct_net": 6000, "vm_unet": 250, "segmamba": 1000}  # fmt: skip
RATES = [  # network, epoch (of mcanet and pct_net: step), learning rate by the card
    ("focal_unet", 0, 1e-4), ("focal_unet", 0.5, 5e-5), ("focal_unet", 1, 1e-4), ("focal_unet", 2, 5e-5),
    ("focal_unet", 31, 1e-4), ("focal_unet", 47, 5e-5), ("focal_unet", 126.999, 0.0),
    ("hi_end_mae", 25, 5e-5), ("hi_end_mae", 50, 1e-4), ("hi_end_mae", 275, 5e-5), ("hi_end_mae", 499.9, 0.0),
    ("swin_unet", 20, 5e-4), ("swin_unet", 40, 1e-3), ("swin_unet", 95, 5e-4),
    ("swin_bob", 25, 5e-5), ("swin_bob", 525, 5e-5),
    ("msvm_unet", 0, 5e-4), ("msvm_unet", 150, (5e-4 + 1e-6) / 2), ("msvm_unet", 299.99, 1e-6),
    ("vm_unet", 0, 1e-3), ("vm_unet", 25, (1e-3 + 1e-5) / 2), ("vm_unet", 50, 1e-5), ("vm_unet", 100, 1e-3),
    ("vm_unet", 150, 1e-5), ("vm_unet", 225, (1e-3 + 1e-5) / 2), ("vm_unet", 249.999, 1e-5),
    ("mcanet", 750, 2.5e-4), ("mcanet", 1500, 5e-4), ("mcanet", 40_000, 3.75e-4), ("mcanet", 79_999, 2.5e-4),
    ("meddinov3", 0, 3e-4), ("meddinov3", 250, 2.25e-4), ("meddinov3", 999, 3e-7),
    ("pct_net", 3000, 1e-3 * 0.5**0.8), ("segmamba", 500, 0.01 * 0.5**0.9),
]  # fmt: skip


def network(name):
    try:
        return plugins.load("architecture", name)
    except UserError as error:
        pytest.skip(str(error))


def recipe(name):
    return network(name).recipe


def as_published(name):
    return published(network(name).published_recipe())


def a_trainer(settings):
    """A trainer without data; only its settings matter here."""
    trainer = object.__new__(Trainer)
    for name, value in settings.items():
        assert hasattr(Trainer, name)
        setattr(trainer, name, value)
    return trainer


@pytest.mark.parametrize("name", CARDS)
def test_the_optimizer_is_that_of_the_card(name):
    kind, rate, more, decay, loss = CARDS[name]
    trainer = a_trainer(as_published(name))
    made = trainer.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    (group,) = made.param_groups
    assert type(made) is kind
    assert (group["lr"], group["weight_decay"]) == (rate, decay)
    names = ("momentum", "nesterov") if kind is SGD else ("betas", "eps")
    assert tuple(group[each] for each in names) == more
    assert (trainer.dice_weight, trainer.cross_entropy_weight) == loss


@pytest.mark.parametrize("name", CARDS)
def test_networks_published_with_one_output_learn_from_that_alone(name):
    alone = {"segmamba", "y_net", "diamant", "u_transformer", "resunet_plus_plus"}  # whose other heads are ours
    assert a_trainer(as_published(name)).deep_supervision is (name not in alone)
    suits = a_trainer(suited(recipe(name), recipe_for(1000)))  # what their cards leave to the engine's loss has all
    assert suits.deep_supervision is (name not in alone - {"segmamba", "resunet_plus_plus"})


@pytest.mark.parametrize(("name", "clip"), [("segmamba", 12.0), ("lightm_unet", 12.0), ("primus", 1.0)])
def test_gradients_are_clipped_as_the_card_says(name, clip):
    assert as_published(name)["gradient_clip"] == clip


def test_every_patch_of_segmamba_lies_on_foreground():
    assert as_published("segmamba")["foreground_fraction"] == 1.0


@pytest.mark.parametrize(("name", "epoch", "rate"), RATES)
def test_the_rate_over_the_run_is_that_of_the_card(name, epoch, rate):
    trainer, progress = a_trainer(as_published(name)), epoch / EPOCHS[name]
    steps = 10**6  # so that the first is no share of a warm-up
    found = trainer.learning_rate * rate_factor(trainer, round(progress * steps), progress)
    assert found == pytest.approx(rate, rel=0.01, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in EPOCHS if name not in ("vm_unet", "segmamba")])
def test_short_runs_have_the_common_schedule_and_the_betas_of_the_card(name):
    common = recipe_for(1000)
    trainer = a_trainer({**common, **suited(recipe(name), common)})
    own = CARDS[name]
    assert rate_factor(trainer, 500, 0.5) == rate_factor(a_trainer(common), 500, 0.5)
    assert trainer.learning_rate == pytest.approx(min(10 * own[1], 6e-3))
    assert (trainer.beta1, trainer.beta2) == own[2][0]


def test_adam_is_no_adamw_where_weights_decay():
    """Adam's decay is part of the gradient, which its step normalises away; AdamW's shrinks the weight itself."""
    moved = {}
    for name in ("adam", "adamw"):
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.zeros(1)
        a_trainer({"optimizer": name, "learning_rate": 0.1, "weight_decay": 0.5}).make_optimizer([weight]).step()
        moved[name] = weight.item()
    assert moved == pytest.approx({"adam": 0.9, "adamw": 0.95}, abs=1e-6)


def test_momentum_of_zero_is_plain_gradient_descent():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    a_trainer({"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}).make_optimizer([weight]).step()
    assert weight.item() == pytest.approx(0.9)


@pytest.mark.parametrize("shape", ["polynomial", "cosine", "cosine_waves", "cosine_restarts"])
def test_every_shape_falls_from_the_rate_to_the_final_one(shape):
    assert annealed(shape, 0.0, power=0.9, final=0.2) == 1.0
    assert annealed(shape, 1.0, power=0.9, final=0.2) == pytest.approx(0.2)
    assert all(0.2 <= annealed(shape, each / 500, power=0.9, final=0.2) <= 1.0 for each in range(501))


def test_the_rate_of_vm_unet_rises_again_only_as_published():
    full = a_trainer(recipe("vm_unet"))
    rates = [full.schedule(part / 100) for part in range(101)]
    assert rates == sorted(rates, reverse=True)


def test_the_rate_of_unet_plus_plus_stays_only_as_published():
    """Its card names none that falls."""
    parts = (0.0, 0.3, 1.0)
    assert [a_trainer(as_published("unet_plus_plus")).schedule(part) for part in parts] == [1.0, 1.0, 1.0]
    assert a_trainer(recipe("unet_plus_plus")).schedule(1.0) == 0.0


def test_cycles_of_warm_restarts_by_hand():
    within = {
        parts: annealed("cosine_restarts", parts / 127, power=0.9, final=0.0) for parts in (1.5, 3, 4, 10, 62.999)
    }
    assert within == pytest.approx(
        {1.5: 0.5 + 0.5 * math.cos(math.pi / 4), 3: 1.0, 4: 0.5 + 0.5 * math.cos(math.pi / 4),
         10: 0.5 + 0.5 * math.cos(math.pi * 3 / 8), 62.999: 0.0}, abs=1e-6,
    )  # fmt: skip
