"""The schedules of the card "revisiting-mae"; an epoch is a thousandth of the run."""

import pytest
import torch


def test_warm_up_reaches_the_values_of_the_card(build):
    trainer = build("fine_tuning", optimizer="sgd", learning_rate=0.01)
    (group,) = trainer.make_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    rate = lambda epochs: group["lr"] * trainer.schedule(epochs / 1000)  # noqa: E731
    assert rate(1) == pytest.approx(2e-5)  # the end of epoch 0
    assert rate(50) == pytest.approx(1e-3)  # the end of epoch 49, the start of epoch 50
    assert rate(999) == pytest.approx(1e-3 * (1 / 950) ** 0.9)
    assert rate(1000) == 0


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({"optimizer": "adamw"}, 0.006), ({"optimizer": "adamw", "rate_share": 0.5}, 0.003), ({"optimizer": "sgd"}, 6e-4)],
)
def test_only_the_rate_of_sgd_is_lowered_unasked(build, settings, rate):
    trainer = build("fine_tuning", learning_rate=0.006, **settings)
    (group,) = trainer.make_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert group["lr"] == pytest.approx(rate)


def test_sawtooth_rises_and_decays_twice(build):
    trainer = build("fine_tuning", stages="sawtooth")
    factor = lambda epochs: trainer.schedule(epochs / 1000)  # noqa: E731
    assert factor(12.5) == pytest.approx(0.5)
    assert factor(25) == pytest.approx(1)
    assert factor(37.5) == pytest.approx(0.5**0.9)
    assert factor(49.999) < 1e-3
    assert factor(50) == 0
    assert factor(75) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(1)
    assert factor(550) == pytest.approx(0.5**0.9)


def test_a_frozen_encoder_stays_as_it_is_for_its_share_of_the_run(build):
    trainer = build("fine_tuning", frozen=10 / 300, optimizer="adamw", weight_decay=0.1, rate_share=1.0)
    batches = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    network = trainer.modules["network"]
    optimizer = trainer.build_optimizers(trainer.modules)["network"]
    for epoch, moves in ((0, False), (9.9, False), (10, True)):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        optimizer.zero_grad(set_to_none=True)
        ((_, loss),) = trainer.training_step(batches, epoch / 300)
        loss.backward()
        optimizer.step()
        changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
        assert any(name.startswith("encoder.") for name in changed) == moves
        assert any(name.startswith("decoder.") for name in changed)


def test_the_encoder_rests_in_the_first_tooth(build):
    trainer = build("fine_tuning", stages="sawtooth")
    batches = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    network = trainer.modules["network"]
    for progress, moves in ((0.01, False), (0.2, True)):
        network.zero_grad(set_to_none=True)
        ((name, loss),) = trainer.training_step(batches, progress)
        loss.backward()
        assert name == "network"
        assert all((parameter.grad is not None) == moves for parameter in network.encoder.parameters())
        assert network.decoder.seg_layers[-1].weight.grad is not None
