"""Networks are trained by the losses of their authors: the numbers of their cards, through recipe and trainer.

The engine's Dice is negative: its loss is lower than the published one by the weight of the Dice.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoseg import plugins
from autoseg.labels import Labels
from autoseg.training.recipe import published, recipe_for, suited
from autoseg.training.trainer import Trainer

TWO = Labels(values={"a": (1,)})
SQUARED = {  # network: weights of Dice and cross-entropy; squared denominators, smooth 1e-5, the background counts
    "focal_unet": (0.6, 0.4),
    "hiformer": (0.6, 0.4),
    "msvm_unet": (0.6, 0.4),
    "paratranscnn": (0.5, 0.5),
    "swin_unet": (1.0, 1.0),
    "vm_unet": (1.0, 1.0),
}


def loss_of(name, labels, *, batch_dice=True, kind="published"):
    """The loss of a trainer with a network's recipe; of its context only the plan's Dice matters."""
    network, trainer = plugins.load("architecture", name), object.__new__(Trainer)
    published_settings, own = published(network.published_recipe()), suited(network.recipe, recipe_for(1000))
    for setting, value in (published_settings if kind == "published" else own).items():
        setattr(trainer, setting, value)
    trainer.labels = labels
    network = SimpleNamespace(features=(8, 16))
    trainer.context = SimpleNamespace(configuration=SimpleNamespace(batch_dice=batch_dice, network=network))
    trainer.build_modules = lambda: {"network": nn.Identity()}
    trainer.prepare()
    return trainer.loss


def terms(logits, target, *, axes, above=1e-5, below=1e-5):
    """Mean squared-denominator Dice of all classes and the cross-entropy, in float64."""
    p = logits.double().softmax(1).flatten(2)
    t = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).double().flatten(2)
    dice = (2 * (p * t).sum(axes) + above) / ((p**2).sum(axes) + (t**2).sum(axes) + below)
    return dice.mean().item(), functional.cross_entropy(logits.double(), target).item()


@pytest.mark.parametrize("kind", ["own", "published"])
@pytest.mark.parametrize("name", SQUARED)
def test_squared_dice_of_all_classes_and_cross_entropy(name, kind):
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 4, 6, 5, generator=random), torch.randint(0, 4, (2, 6, 5), generator=random)
    dice, entropy = terms(logits, target, axes=(0, 2))
    weights = SQUARED[name]
    loss = loss_of(name, Labels(values={"a": (1,), "b": (2,), "c": (3,)}), kind=kind)(logits, target)
    assert loss.item() == pytest.approx(weights[1] * entropy - weights[0] * dice, abs=1e-5)


def test_paratranscnn_by_hand():
    """Card 7: a uniform prediction over nine classes of equal size."""
    target = torch.arange(9).repeat(100).reshape(1, 30, 30)
    labels = Labels(values={str(value): (value,) for value in range(1, 9)})
    loss = loss_of("paratranscnn", labels)(torch.zeros(1, 9, 30, 30), target)
    assert loss.item() + 0.5 == pytest.approx(0.5 * math.log(9) + 0.5 * 0.8, abs=1e-4)
    assert loss.item() + 0.5 == pytest.approx(1.4986, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mcanet", "published"), ("ms_dual_guided", "own"), ("ms_dual_guided", "published"), ("segmamba", "published")],
)
def test_cross_entropy_alone(name, kind):
    """SegMamba: cross entropy only; MS-Dual-Guided: CE(P) and CE(Q); MCANet: softmax CE of several classes."""
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 4, 6, 5, generator=random), torch.randint(0, 4, (2, 6, 5), generator=random)
    loss = loss_of(name, Labels(values={"a": (1,), "b": (2,), "c": (3,)}), kind=kind)(logits, target)
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, target).item(), abs=1e-6)


@pytest.mark.parametrize("name", ["mcanet", "medvisionllama", "resunet_plus_plus", "segmamba"])
def test_the_engines_loss_is_the_default_where_the_card_says_so(name):
    """Their cards: "engine: Dice+CE", "use the engine's CE + Dice", "by default", "CE + Dice is fine"."""
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 5, generator=random), torch.randint(0, 3, (2, 6, 5), generator=random)
    labels = Labels(values={"a": (1,), "b": (2,)})
    engine = loss_of("plain_unet", labels, kind="own")(logits, target)
    assert loss_of(name, labels, kind="own")(logits, target).item() == pytest.approx(engine.item(), abs=1e-7)
    assert loss_of(name, labels)(logits, target).item() != pytest.approx(engine.item(), abs=1e-2)


@pytest.mark.parametrize("kind", ["own", "published"])
@pytest.mark.parametrize("foreground", [(200.0, -200.0), (1.0, -0.5)])
def test_unet_plus_plus_by_its_formula(foreground, kind):
    """Card 7: 0.5 BCE - (2 sum PY + 1) / (sum P + sum Y + 1), which is -1 for P = Y = (1, 0)."""
    score, truth = torch.tensor(foreground), torch.tensor([1, 0])
    p, bce = score.sigmoid(), functional.binary_cross_entropy_with_logits(score, truth.float())
    wanted = 0.5 * bce - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    logits = torch.stack([torch.zeros(2), score]).reshape(1, 2, 1, 2)
    loss = loss_of("unet_plus_plus", TWO, kind=kind)(logits, truth.reshape(1, 1, 2))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    if foreground[0] == 200.0:
        assert loss.item() == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["fmunet", "pct_net"])
def test_the_background_counts_in_mis_fm(name):
    """Card: 0.5 Dice + 0.5 CE over all classes, background included."""
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 5, 4, generator=random), torch.randint(0, 3, (2, 6, 5, 4), generator=random)
    p, t = logits.softmax(1), functional.one_hot(target, 3).movedim(-1, 1)
    axes = (0, 2, 3, 4)
    dice = (2 * (p * t).sum(axes) / (p.sum(axes) + t.sum(axes))).mean()
    loss = loss_of(name, Labels(values={"a": (1,), "b": (2,)}))(logits, target)
    assert loss.item() == pytest.approx((0.5 * functional.cross_entropy(logits, target) - 0.5 * dice).item(), abs=1e-5)


def test_hi_end_mae_smooths_below_only():
    """0 above and 1e-6 below the fraction, so that a class which is nowhere counts 0; samples on their own."""
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 5, 4, generator=random), torch.randint(0, 2, (2, 6, 5, 4), generator=random)
    dice, entropy = terms(logits, target, axes=2, above=0.0, below=1e-6)
    loss = loss_of("hi_end_mae", Labels(values={"a": (1,), "b": (2,)}), batch_dice=False)(logits, target)
    assert loss.item() == pytest.approx(entropy - dice, abs=1e-5)


@pytest.mark.parametrize(("found", "truth", "wanted"), [((1, 1, 0, 0), (1, 0, 0, 0), 0.25), ((0,) * 4, (0,) * 4, 0.0)])
def test_resunet_plus_plus_by_hand(found, truth, wanted):
    """Card 6: 1 - (2 sum p t + 1) / (sum p + sum t + 1), and no cross-entropy."""
    foreground = torch.tensor(found) * 200.0 - 100
    loss = loss_of("resunet_plus_plus", TWO)(torch.stack([-foreground, foreground])[None], torch.tensor(truth)[None])
    assert 1 + loss.item() == pytest.approx(wanted, abs=1e-6)


def test_medvisionllama_has_the_gradient_of_its_authors_loss():
    """Card 7: 0.5 BCE + 0.5 (1 - Dice of thresholded predictions), whose gradient is that of 0.5 BCE."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 5, 4, generator=random)
    target = torch.randint(0, 2, (2, 6, 5, 4), generator=random)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss_of("medvisionllama", TWO)(ours, target).backward()
    score = theirs[:, 1] - theirs[:, 0]  # of which the sigmoid is the softmax's second entry
    hard = (score.sigmoid() > 0.5).float()
    dice = (2 * (hard * target).sum() + 1) / (hard.sum() + target.sum() + 1)
    bce = functional.binary_cross_entropy_with_logits(score, target.float())
    (0.5 * bce + 0.5 * (1 - dice)).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-8)
    assert (theirs.grad != 0).all()
