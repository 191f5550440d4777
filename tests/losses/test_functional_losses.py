import pytest
import torch
from torch.nn import functional

from autoseg.losses import cross_entropy_loss, dice_loss, focal_loss


@pytest.fixture
def sample():
    random = torch.Generator().manual_seed(4)
    return torch.randn(2, 4, 5, 6, generator=random), torch.randint(0, 4, (2, 5, 6), generator=random)


def test_cross_entropy_is_that_of_torch(sample):
    logits, target = sample
    assert torch.allclose(cross_entropy_loss(logits, target.short()), functional.cross_entropy(logits, target))
    ignoring = functional.cross_entropy(logits, target, ignore_index=3)
    assert torch.allclose(cross_entropy_loss(logits, target, ignore_index=3), ignoring)
    assert cross_entropy_loss(logits, torch.full_like(target, 3), ignore_index=3) == 0


def test_focal_loss_by_hand():
    logits = torch.tensor([[[0.0], [0.0]]])  # probability one half
    target = torch.zeros(1, 1, dtype=torch.long)
    assert focal_loss(logits, target, gamma=2).item() == pytest.approx(0.25 * 0.693147, abs=1e-6)
    assert focal_loss(logits, target, gamma=0).item() == pytest.approx(0.693147, abs=1e-6)


def test_class_weights_multiply_the_terms_of_their_voxels():
    logits = torch.zeros(1, 2, 4)  # probability one half
    weights, target = torch.tensor([0.5, 1.5]), torch.tensor([[0, 1, 1, 2]])
    half = 0.25 * 0.693147
    assert focal_loss(logits, target, ignore_index=2, class_weights=weights).item() == pytest.approx(
        half * (0.5 + 1.5 + 1.5) / 3, abs=1e-6
    )
    assert focal_loss(logits[..., :2], target[:, :2], class_weights=weights).item() == pytest.approx(half, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_a_certain_voxel_has_a_finite_gradient(gamma):
    logits = torch.tensor([[[200.0, 1.0], [0.0, 0.0]]], requires_grad=True)
    focal_loss(logits, torch.zeros(1, 2, dtype=torch.long), gamma=gamma).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_loss_is_the_formula(sample, background, batch_dice):
    logits, target = sample
    p = torch.softmax(logits.double(), 1).flatten(2)
    g = functional.one_hot(target, 4).movedim(-1, 1).flatten(2).double()
    axes = (0, 2) if batch_dice else 2
    dice = (2 * (p * g).sum(axes) + 1e-5) / (p.sum(axes) + g.sum(axes) + 1e-5)
    dice = dice if background else dice[..., 1:]
    found = dice_loss(logits, target, background=background, batch_dice=batch_dice)
    assert found.item() == pytest.approx(-dice.mean().item(), abs=1e-6)


def test_the_example_of_the_readme(sample):
    logits, target = sample
    logits.requires_grad_()
    loss = dice_loss(logits, target) + focal_loss(logits, target, gamma=2.0)
    loss.backward()
    assert loss.ndim == 0
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("loss", [dice_loss, cross_entropy_loss, focal_loss])
def test_a_target_without_an_output_is_told(loss):
    logits, target = torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 3)
    with pytest.raises(ValueError, match=r"value 3, the outputs are for 0 to 2.*ignore_index=self\.labels"):
        loss(logits, target)
    assert torch.isfinite(loss(logits, target, ignore_index=3))
