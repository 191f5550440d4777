import math

import pytest
import torch

from autoseg.batches import HiddenLabels
from autoseg.errors import UserError
from autoseg.losses import full_resolution, split_outputs
from autoseg.store.stored_case import StoredCase


def batches_of(trainer, step=0):
    return {name: stream.batch(step) for name, stream in trainer.build_streams().items()}


def train_steps(trainer, count, progress=0.5):
    """Plain gradient descent in place of the loop; yields after every step."""
    optimizer = torch.optim.SGD(trainer.modules["network"].parameters(), 0.05)
    for step in range(count):
        trainer.step = step
        ((name, loss),) = trainer.training_step(batches_of(trainer, step), progress)
        assert name == "network"
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.after_step(progress)
        yield step


def copied(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_teacher_follows_the_formula_and_gets_no_gradient(build):
    trainer = build("mean_teacher", teacher_decay=0.6)
    teacher, student = trainer.modules["teacher"], trainer.modules["network"]
    expected = copied(teacher)
    for step in train_steps(trainer, 4):
        decay = (0, 1 / 2, 0.6, 0.6)[step]  # min(1 - 1 / (step + 1), 0.6)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, copied(student), strict=True)]
        for parameter, value in zip(teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter, value, atol=1e-6, rtol=1e-5)
            assert parameter.grad is None


def test_the_weight_rises_as_in_the_paper(build):
    trainer = build("mean_teacher", consistency=8.0, ramp_up=0.4)
    assert trainer.consistency_weight(0) == pytest.approx(8 * math.exp(-5))
    assert trainer.consistency_weight(0.2) == pytest.approx(8 * math.exp(-1.25))
    assert trainer.consistency_weight(0.4) == trainer.consistency_weight(1) == 8


def test_without_noise_a_teacher_equal_to_the_student_adds_nothing(build):
    trainer = build("mean_teacher", noise=0.0)
    batches = batches_of(trainer)
    ((_, loss),) = trainer.training_step(batches, 1.0)
    labelled = batches["labelled"]
    torch.testing.assert_close(loss, trainer.supervised_loss(trainer.modules["network"](labelled.image), labelled))


def test_the_consistency_is_the_mean_squared_difference_of_probabilities(build):
    trainer = build("mean_teacher", noise=0.0, consistency=3.0)
    with torch.no_grad():
        for parameter in trainer.modules["teacher"].parameters():
            parameter.mul_(1.1)
    batches = batches_of(trainer)
    ((_, loss),) = trainer.training_step(batches, 1.0)
    labelled, unlabelled = batches["labelled"], batches["unlabelled"].image
    student, teacher = trainer.modules["network"], trainer.modules["teacher"]
    guessed, taught = (full_resolution(network(unlabelled)).softmax(1) for network in (student, teacher))
    expected = trainer.supervised_loss(student(labelled.image), labelled) + 3 * ((guessed - taught) ** 2).mean()
    torch.testing.assert_close(loss, expected)


def test_noise_is_cut_at_twice_its_deviation(build):
    trainer = build("mean_teacher", noise=0.1)
    image = torch.zeros(1, 1, 40, 40, 40)
    noise = trainer.perturbed(image)
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.std() == pytest.approx(0.096, abs=0.002)


def test_labelled_and_unlabelled_cases_are_disjoint_and_labels_stay_hidden(build, monkeypatch):
    trainer = build("mean_teacher", labelled=2, foreground_fraction=1.0)
    streams = trainer.build_streams()
    labelled, unlabelled = streams["labelled"], streams["unlabelled"]
    assert len(labelled.cases) == 2
    assert not set(labelled.cases) & set(unlabelled.cases)
    assert set(labelled.cases) | set(unlabelled.cases) <= set(trainer.context.store.cases)
    assert all(trainer.context.store.read(case).labelled for case in unlabelled.cases)  # there would be labels to see
    assert any((labelled.batch(step).segmentation > 0).any() for step in range(4))

    def seen(self):
        raise AssertionError(f"the locations of labels of {self.id} were read")

    monkeypatch.setattr(StoredCase, "locations", property(seen))
    assert unlabelled.settings.foreground_fraction == 0
    for step in range(8):
        batch = unlabelled.batch(step)
        assert (batch.segmentation == 0).all()
        assert batch.annotated is None


def test_hidden_cases_tell_only_inside_from_outside(build):
    store = build("mean_teacher").context.store
    case = store.cases[0]
    hidden, stored = HiddenLabels(store).read(case), store.read(case)
    assert hidden.shape == stored.shape
    assert not hidden.labelled
    assert hidden.locations == {}
    assert set(map(int, set(hidden.label().ravel()))) <= {-1, 0}
    assert ((hidden.label() == -1) == (stored.label() == -1)).all()


def test_without_unlabelled_cases_the_mend_is_told(build):
    with pytest.raises(UserError, match="--labelled N"):
        build("mean_teacher", labelled=None).build_streams()


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_who_predicts_can_be_chosen(build, who):
    trainer = build("mean_teacher", predicts=who)
    assert trainer.inference_module() is trainer.modules["teacher" if who == "teacher" else "network"]


def test_outputs_are_split_by_sample():
    outputs = [torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, size, size) for size in (4, 2)]
    first, second = split_outputs(outputs, 1)
    assert [output.shape for output in first] == [(1, 2, 4, 4), (1, 2, 2, 2)]
    assert [output[0, 0, 0, 0].item() for output in second] == [1, 1]
    assert split_outputs(outputs[0], 2)[1].shape == (1, 2, 4, 4)
