"""The guiding losses of multi-scale self-guided attention."""

import logging
import math

import pytest
import torch


def step(trainer):
    batches = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    ((_, loss),) = trainer.training_step(batches, 0.0)
    return loss, batches["labelled"]


def mean_square(a, b):
    return ((a - b) ** 2).mean()


def test_the_losses_are_added_with_their_weights(build):
    trainer = build("guided_attention", architecture="ms_dual_guided")
    trainer.modules["network"].train()
    loss, batch = step(trainer)
    first, second = trainer._calls
    assert len(first) == len(second) == len(trainer.modules["network"].heads)
    codes = sum(mean_square(a[1], b[1]) for a, b in zip(first, second, strict=True))
    given = sum(mean_square(seen, decoded) for calls in (first, second) for seen, _, decoded in calls)
    guiding = 0.25 * codes + 0.1 * given
    assert guiding > 0.01
    torch.testing.assert_close(trainer.guiding_loss(), guiding)
    with torch.no_grad():
        logits = trainer.modules["network"](batch.image)
        labels = trainer.supervised_loss(logits, batch)
    torch.testing.assert_close(loss, labels + guiding / len(logits), rtol=1e-4, atol=1e-4)


def test_without_early_outputs_the_guidance_weighs_the_same(build):
    trainer = build("guided_attention", architecture="ms_dual_guided", deep_supervision=False)
    network = trainer.modules["network"].train()
    loss, batch = step(trainer)
    guiding = trainer.guiding_loss()
    with torch.no_grad():
        labels = trainer.supervised_loss(network(batch.image), batch)
    torch.testing.assert_close(loss, labels + guiding / (2 * len(network.heads)), rtol=1e-4, atol=1e-4)


def test_gradients_reach_both_sides(build):
    trainer = build("guided_attention", architecture="ms_dual_guided", code_weight=1.0, reconstruction_weight=0.0)
    trainer.modules["network"].train()
    step(trainer)
    trainer.guiding_loss().backward()
    first, second = (each.semantic for each in trainer.modules["network"].passes)
    for semantic in (first, second):
        assert semantic.down[0][0].weight.grad.abs().max() > 0
    assert first.up[0][0].weight.grad.abs().max() > 0  # its gate decides what the second pass encodes
    assert (second.up[0][0].weight.grad == 0).all()  # decodes what no code sees


def test_calls_of_one_step_are_forgotten_in_the_next(build):
    trainer = build("guided_attention", architecture="ms_dual_guided")
    trainer.modules["network"].train()
    step(trainer)
    step(trainer)
    assert len(trainer._calls[0]) == len(trainer.modules["network"].heads)
    trainer.modules["network"].eval()(torch.zeros(1, 1, *trainer.context.configuration.patch_size))
    assert len(trainer._calls[0]) == len(trainer.modules["network"].heads)


def test_cross_entropies_start_near_the_logarithm_of_the_classes(build):
    trainer = build("guided_attention", architecture="ms_dual_guided")  # its recipe has no Dice
    outputs = trainer.modules["network"].train()
    batch = trainer.build_streams()["labelled"].batch(0)
    logits = outputs(batch.image)
    zero = [torch.zeros_like(each) for each in logits]
    classes = logits[0].shape[1]
    assert trainer.supervised_loss(zero, batch).item() == pytest.approx(math.log(classes), rel=1e-4)


def test_other_networks_are_trained_as_usual(build, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build("guided_attention")
    assert "ms_dual_guided" in caplog.text
    trainer.modules["network"].train()
    loss, batch = step(trainer)
    with torch.no_grad():
        assert torch.equal(loss, trainer.supervised_loss(trainer.modules["network"](batch.image), batch))
