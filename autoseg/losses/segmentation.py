"""The default loss: cross-entropy plus soft Dice. Source: nnU-Net v2 (Apache-2.0)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.labels import Labels
from autoseg.losses.dice import SMOOTH, negative_dice
from autoseg.losses.functional import check_shapes, without_background
from autoseg.losses.sums import sigmoid_sums, softmax_sums, squared_sums


class SegmentationLoss(nn.Module):
    """Cross-entropy (softmax, or sigmoid with regions) plus negative soft Dice, in float32; the minimum is -1.

    Voxels with the ignore value count for nothing. With `batch_dice` the Dice sums run over the batch and over all
    processes. Where a sample is annotated for some classes only, its background may hide the others: their
    probability is added to that of the background, and they are left out of its Dice; of regions those that are not
    completely annotated are left out. A voxel whose class is not annotated in its sample counts as background.

    Other forms of Dice: `squared` takes the sum of squared probabilities below the fraction (Milletari et al. 2016,
    arXiv:1606.04797), `background` lets class 0 count as the others do (regions have none), `smooth` is added above and
    below the fraction.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        batch_dice: bool,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        squared: bool = False,
        background: bool = False,
        smooth: float = SMOOTH,
    ):
        super().__init__()
        self.labels = labels
        self.batch_dice = batch_dice
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.squared = squared
        self.background = background
        self.smooth = smooth
        members = torch.zeros(len(labels.members), len(labels.foreground_values) + 2, dtype=torch.bool)
        for region, values in enumerate(labels.members):
            members[region, list(values)] = True
        self.register_buffer("members", members, persistent=False)

    def forward(self, logits: Tensor, segmentation: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar.

        logits (B, outputs, *S), segmentation (B, *S) internal values, annotated (B, K + 1) bool over internal values.
        """
        check_shapes(logits, segmentation)
        if annotated is not None:
            annotated = annotated.to(logits.device)
            if not self.labels.regions:
                segmentation = hide_classes(segmentation, annotated)
        ignored = self.labels.ignore_index
        valid = None if ignored is None else segmentation != ignored
        voxels = segmentation.numel() if valid is None else valid.sum().clamp_min(1)
        return (self._regions if self.labels.regions else self._classes)(
            logits, segmentation, annotated, valid=valid, voxels=voxels
        )

    def _classes(
        self,
        logits: Tensor,
        segmentation: Tensor,
        annotated: Tensor | None,
        *,
        valid: Tensor | None,
        voxels: Tensor | int,
    ) -> Tensor:
        weights = None
        if annotated is not None:
            logits = merge_into_background(logits, annotated)
            weights = (annotated if self.background else annotated[:, 1:]).float()
        sums = softmax_sums(logits, segmentation, valid)
        if self.squared:
            sums = sums._replace(predicted=squared_sums(logits.float().softmax(1), valid))
        counted = sums if self.background else without_background(sums)
        dice = negative_dice(counted, batch_dice=self.batch_dice, weights=weights, smooth=self.smooth)
        return self.dice_weight * dice + self.ce_weight * (sums.cross_entropy.sum() / voxels)

    def _regions(
        self,
        logits: Tensor,
        segmentation: Tensor,
        annotated: Tensor | None,
        *,
        valid: Tensor | None,
        voxels: Tensor | int,
    ) -> Tensor:
        members = self.members.to(logits.device)
        sums = sigmoid_sums(logits, segmentation, members, valid)
        if annotated is None:
            entropy, weights = sums.cross_entropy.sum() / (voxels * len(members)), None
        else:
            missing = ~annotated  # (B, K + 1)
            weights = (~(missing[:, None] & members[None, :, :-1]).any(2)).float()  # (B, R)
            per_sample = (segmentation >= 0 if valid is None else valid).flatten(1).sum(1)
            counted = (weights * per_sample[:, None]).sum().clamp_min(1)
            entropy = (sums.cross_entropy * weights).sum() / counted
        if self.squared:
            sums = sums._replace(predicted=squared_sums(logits.float().sigmoid(), valid))
        dice = negative_dice(sums, batch_dice=self.batch_dice, weights=weights, smooth=self.smooth)
        return self.dice_weight * dice + self.ce_weight * entropy


def hide_classes(segmentation: Tensor, annotated: Tensor) -> Tensor:
    """Return the target (B, *S) with background where it shows a class that is not annotated in its sample.

    Such a class has probability 0 (see `merge_into_background`), so as a target its cross-entropy would be infinite.
    annotated (B, K) bool over internal values; the ignore value K and -1 stay.
    """
    known = functional.pad(annotated, (0, 1), value=True)
    shown = known.gather(1, segmentation.flatten(1).clamp(min=0).long()).view(segmentation.shape)
    return segmentation.masked_fill(~shown, 0)


def merge_into_background(logits: Tensor, annotated: Tensor) -> Tensor:
    """Add the probability of classes that were not annotated to that of class 0.

    logits (B, K, *S), annotated (B, K) bool, class 0 always True -> logits whose softmax is 0 for those classes.
    """
    shape = (*annotated.shape, *[1] * (logits.ndim - 2))
    known = annotated.view(shape)
    logits = logits.float()
    hidden = logits.masked_fill(known, -torch.inf)
    hidden[:, 0] = logits[:, 0]
    background = torch.logsumexp(hidden, 1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(~known[:, 1:], -torch.inf)], 1)
