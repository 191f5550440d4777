"""The learning rate over a run: warm-up in steps or as a share, then the schedule over the rest."""

import pytest
import torch

from autoseg import plugins
from autoseg.training.loop import MOST_WARMUP, rate_factor
from autoseg.training.recipe import recipe_for, suited
from autoseg.training.trainer import Trainer

PRIMUS = plugins.load("architecture", "primus").recipe
EPOCH, STEPS = 250, 250_000


def a_trainer(**settings):
    """A trainer without data; only its settings matter here."""
    trainer = object.__new__(Trainer)
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


@pytest.mark.parametrize("warmup", [{"warmup_share": PRIMUS["warmup_share"]}, {"warmup_steps": 12_500}])
@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (EPOCH - 1, 6e-6),  # the end of epoch 0
        (50 * EPOCH - 1, 3e-4),  # the end of epoch 49
        (50 * EPOCH, 3e-4),
        (525 * EPOCH, 3e-4 * 0.5**0.9),
        (999 * EPOCH, 3e-4 * (1 / 950) ** 0.9),
    ],
)
def test_the_rates_of_primus_are_those_of_its_card(warmup, step, rate):
    trainer = a_trainer(**{**PRIMUS, "warmup_share": 0.0, **warmup})
    assert trainer.learning_rate * rate_factor(trainer, step, step / STEPS) == pytest.approx(rate, rel=1e-9)


def test_without_warm_up_the_schedule_covers_the_run():
    trainer = a_trainer()
    assert [rate_factor(trainer, step, step / 100) for step in (0, 50)] == [1.0, 0.5**0.9]


def test_warm_up_steps_go_before_the_share():
    trainer = a_trainer(warmup_steps=10, warmup_share=0.5)
    assert rate_factor(trainer, 9, 0.09) == 1.0
    assert rate_factor(trainer, 55, 0.55) == pytest.approx(0.5**0.9)


def test_a_run_shorter_than_its_warm_up_is_annealed_all_the_same():
    trainer = a_trainer(warmup_steps=1000)
    factors = [rate_factor(trainer, step, step / 100) for step in range(100)]
    assert factors[int(100 * MOST_WARMUP)] == pytest.approx(0.051)
    assert factors[-1] < 0.1 * max(factors)


def test_short_runs_of_primus_have_the_common_warm_up():
    common = recipe_for(1000)
    trainer = a_trainer(**{**common, **suited(PRIMUS, common)})
    assert trainer.warmup_steps == 50
    assert rate_factor(trainer, 49, 0.049) == 1.0
    assert rate_factor(trainer, 0, 0.0) == pytest.approx(1 / 50)


def test_the_second_beta_reaches_the_optimizer():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    group = a_trainer(**PRIMUS).make_optimizer(weights).param_groups[0]
    assert (group["betas"], group["lr"], group["weight_decay"]) == ((0.9, 0.98), 3e-4, 0.05)
    assert a_trainer(optimizer="adamw").make_optimizer(weights).defaults["betas"] == (0.9, 0.999)
