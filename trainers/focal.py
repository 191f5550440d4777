"""Focal loss, alone or beside Dice, for foreground that is rare: the losses that `unet_variants` are compared by.

Source: Lin et al., 2017, arXiv:1708.02002, and Ehab and Li, 2023, arXiv:2309.13013 (Dice plus focal loss for several
classes, focal loss alone for one); written from the description. The focal loss is the mean over voxels of
(1 - p)^gamma times the cross-entropy, p being the probability of the target, gamma 2; it has the weight of the
cross-entropy, which it is at gamma 0. Dice counts the background, too, as published.

To compare: `--trainer focal --set dice_weight=0` is the focal loss alone, `--trainer focal` Dice plus focal loss, and
`supervised` Dice plus cross-entropy. `--set class_weights=inverse` weights the focal terms of a class by the inverse of
its share of the training cases' voxels, the mean of these weights being 1; of regions, by that of the region.

Deviations: probabilities are not clipped. Ignored voxels, regions (sigmoid instead of softmax) and classes that a case
was not annotated for are left out, which the authors do not have. Optimiser and rate are the plan's or the
architecture's.

Run: `autoseg train DATA 2d 0 --architecture att_res_unet --trainer focal`. Costs as much per step as the default
trainer; `inverse` reads the training cases' label maps once at the start. Works with every architecture. Published
scores of single losses are not known here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional

from autoseg import Trainer, register
from autoseg.labels import Labels
from autoseg.losses import SegmentationLoss, focal_loss
from autoseg.losses.functional import check_shapes, focused
from autoseg.losses.segmentation import hide_classes, merge_into_background


@register.trainer("focal")
class Focal(Trainer):
    """Supervised by Dice and focal loss; without `dice_weight` by the focal loss alone."""

    gamma: NonNegativeFloat = 2.0  # how much less sure voxels count; 0 gives plain cross-entropy
    class_weights: Literal["equal", "inverse"] = "equal"  # inverse: of the share of the training cases' voxels
    dice_background: bool = True

    def loss(self, logits: Tensor, target: Tensor, *annotated: Tensor) -> Tensor:
        """Return the loss of one output: logits (B, K, *S), target (B, *S) internal values -> scalar."""
        focal = self.cross_entropy_weight * self._focal(logits, target, *annotated)
        return focal + self._dice(logits, target, *annotated) if self.dice_weight else focal

    def prepare(self) -> dict[str, nn.Module]:
        """Build the modules and both losses."""
        self._dice = SegmentationLoss(
            self.labels, batch_dice=self.context.configuration.batch_dice, dice_weight=self.dice_weight, ce_weight=0.0,
            squared=self.dice_squared, background=self.dice_background, smooth=self.dice_smooth,
        )  # fmt: skip
        weights = None if self.class_weights == "equal" else inverse_shares(self.voxels(), self.labels)
        self._focal = FocalLoss(self.labels, gamma=self.gamma, class_weights=weights)
        return super().prepare()

    def voxels(self) -> np.ndarray:
        """Return the number of voxels of each internal value in the training cases, the background's first."""
        counts = np.zeros(len(self.labels.foreground_values) + 2, dtype=np.int64)
        for case in self.context.training_cases:
            label = self.context.store.read(case).label()
            counts += np.bincount(label.ravel().clip(min=0), minlength=len(counts))
        return counts[:-1]  # without those that are ignored


class FocalLoss(nn.Module):
    """The mean of (1 - p)^gamma times the cross-entropy, with weights (outputs,) of classes or regions.

    What has the ignore value counts for nothing. The probability of a class that a sample was not annotated for is
    added to that of the background; a region counts where all its classes were annotated.
    """

    def __init__(self, labels: Labels, *, gamma: float = 2.0, class_weights: Tensor | None = None):
        super().__init__()
        self.labels, self.gamma = labels, gamma
        self.register_buffer("members", SegmentationLoss(labels, batch_dice=False).members, persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the loss: logits (B, K, *S), target (B, *S) internal values, annotated (B, values) bool."""
        check_shapes(logits, target)
        target = target.clamp(min=0)
        annotated = None if annotated is None else annotated.to(logits.device)
        if self.labels.regions:
            return self._regions(logits.float(), target.long(), annotated)
        if annotated is not None:
            logits, target = merge_into_background(logits, annotated), hide_classes(target, annotated)
        ignored = self.labels.ignore_index
        return focal_loss(logits, target, gamma=self.gamma, ignore_index=ignored, class_weights=self.class_weights)

    def _regions(self, logits: Tensor, target: Tensor, annotated: Tensor | None) -> Tensor:
        members = self.members.to(logits.device)
        inside = members[:, target].movedim(0, 1).float()  # (B, R, *S)
        entropy = functional.binary_cross_entropy_with_logits(logits, inside, reduction="none")
        terms = focused(entropy, self.gamma).flatten(2)
        if self.class_weights is not None:
            terms = terms * self.class_weights.to(terms.device)[:, None]
        counted = torch.ones_like(terms)
        if self.labels.ignore_index is not None:
            counted = counted * (target != self.labels.ignore_index).flatten(1)[:, None]
        if annotated is not None:
            hidden = ~annotated[:, None] & members[None, :, :-1]
            counted = counted * ~hidden.any(2, keepdim=True)
        return (terms * counted).sum() / counted.sum().clamp_min(1)


def inverse_shares(voxels: np.ndarray, labels: Labels) -> Tensor:
    """Return a weight per output by the inverse of its voxels, their mean 1; outputs without any have weight 1."""
    if labels.regions:
        voxels = np.array([voxels[list(values)].sum() for values in labels.members])
    inverse = torch.where(torch.tensor(voxels) > 0, 1 / torch.tensor(voxels).clamp_min(1), torch.nan)
    return (inverse / inverse.nanmean()).nan_to_num(1.0).float()
