"""Tversky loss and binary cross-entropy on probabilities, lower outputs fading: the training of `mpu_net`.

Source: Yu and Han, 3D medical image segmentation based on multi-scale MPU-Net, 2023, arXiv:2307.05799; written from the
description. Per sample and class, background included, T = TP / (TP + 0.3 FP + 0.7 FN + 1) from sums of probabilities,
so that a missed voxel costs more than one too many; the loss is 1 - mean T, plus the cross-entropy of every class
against the rest after a sigmoid of its probability. That is what the authors have; it is flat and its minimum is not 0:
in short runs take the usual cross-entropy, `--set bce_on=logits` (hippocampus, 500 steps of `mpu_net`, one seed: Dice
0.775 against 0.000, and 0.842 with the default trainer). The last output counts fully, every other one 0.4, times 0.8
after each twentieth of the run (published: every 30 of 600 epochs). The learning rate halves after each sixth.

Deviations: ignored voxels, regions (sigmoid instead of softmax) and classes that a case was not annotated for are left
out, which the authors do not have. Optimiser and rate are the plan's or the architecture's.

Run: `autoseg train DATA 3d_fullres 0 --architecture mpu_net --trainer tversky_bce`. Costs as much per step as the
default trainer; works with every architecture. Published: Dice 0.922 for livers of LiTS 2017 after 600 epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional

from autoseg import Trainer, register
from autoseg.batches import Batch
from autoseg.labels import Labels
from autoseg.losses import SegmentationLoss, downsample
from autoseg.losses.segmentation import hide_classes, merge_into_background
from autoseg.losses.sums import Sums, sigmoid_sums, softmax_sums

FADES = 20  # times per run that the lower outputs lose weight
HALVINGS = 6  # of the learning rate per run


@register.trainer("tversky_bce")
class TverskyBCE(Trainer):
    """Supervised by Tversky loss and cross-entropy; outputs below the last one count less and less."""

    false_positive_weight: NonNegativeFloat = 0.3
    false_negative_weight: NonNegativeFloat = 0.7
    bce_weight: NonNegativeFloat = 1.0
    bce_on: Literal["probabilities", "logits"] = "probabilities"  # logits: the usual cross-entropy
    lower_weight: NonNegativeFloat = 0.4  # of every output but the last one, at the start
    fade: NonNegativeFloat = 0.8  # factor of that weight after each twentieth of the run

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of all outputs, the lower ones weighted by `progress`."""
        batch = batches["labelled"]
        logits = self.modules["network"](self.network_input(batch))
        yield "network", self.faded_loss(logits, batch, self.lower_weight * self.fade ** int(FADES * progress))

    def schedule(self, progress: float) -> float:
        """Return the factor of the learning rate: halved after each sixth of the run."""
        return 0.5 ** int(HALVINGS * progress)

    def faded_loss(self, logits: Tensor | list[Tensor], batch: Batch, lower: float) -> Tensor:
        """Return the loss of the first output plus `lower` times that of every other."""
        annotated = () if batch.annotated is None else (batch.annotated,)
        outputs = [logits] if isinstance(logits, Tensor) else logits
        terms = [
            (lower if number else 1.0) * self.loss(output, downsample(batch.segmentation, output.shape[2:]), *annotated)
            for number, output in enumerate(outputs)
        ]
        return torch.stack(terms).sum()

    def loss(self, logits: Tensor, target: Tensor, *annotated: Tensor) -> Tensor:
        """Return the loss of one output: logits (B, K, *S), target (B, *S) internal values -> scalar."""
        return self._tversky_bce(logits, target, *annotated)

    def prepare(self) -> dict[str, nn.Module]:
        """Build the modules and the loss."""
        self._tversky_bce = TverskyBCELoss(
            self.labels,
            false_positive=self.false_positive_weight,
            false_negative=self.false_negative_weight,
            bce_weight=self.bce_weight,
            on_logits=self.bce_on == "logits",
        )
        return super().prepare()


class TverskyBCELoss(nn.Module):
    """1 - mean Tversky index, plus `bce_weight` times a mean cross-entropy; see the head of this file.

    What has the ignore value counts for nothing. A class that a sample was not annotated for is left out of it, and its
    probability added to that of the background; a region where all its classes were annotated counts.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        false_positive: float = 0.3,
        false_negative: float = 0.7,
        bce_weight: float = 1.0,
        on_logits: bool = False,
    ):
        super().__init__()
        self.labels, self.bce_weight, self.on_logits = labels, bce_weight, on_logits
        self.false_positive, self.false_negative = false_positive, false_negative
        self.register_buffer("members", SegmentationLoss(labels, batch_dice=False).members, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """Return the loss: logits (B, K, *S), target (B, *S) internal values, annotated (B, values) bool."""
        weights = torch.ones(logits.shape[:2], device=logits.device)
        if annotated is not None:
            logits, target, weights = self._partial(logits, target, annotated.to(logits.device))
        ignored = self.labels.ignore_index
        valid = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
        if self.labels.regions:
            sums, probabilities = sigmoid_sums(logits, target, self._members(logits), valid), logits.float().sigmoid()
        else:
            sums, probabilities = softmax_sums(logits, target, valid), logits.float().softmax(1)
        valid = valid.flatten(1)
        voxels = valid.sum(1, keepdim=True)  # (B, 1)
        if self.on_logits and not self.labels.regions:
            entropy, counted = sums.cross_entropy, voxels
        elif self.on_logits:
            entropy, counted = sums.cross_entropy * weights, voxels * weights
        else:
            of_sigmoid = (functional.softplus(probabilities).flatten(2) * valid[:, None]).sum(2)
            entropy, counted = (of_sigmoid - sums.intersection) * weights, voxels * weights
        return self.tversky(sums, weights) + self.bce_weight * entropy.sum() / counted.sum().clamp_min(1)

    def tversky(self, sums: Sums, weights: Tensor) -> Tensor:
        """Return 1 - the mean index of samples and classes, in 0..1; weights (B, K) of 0 and 1 say which count."""
        hit = sums.intersection
        wrong = self.false_positive * (sums.predicted - hit) + self.false_negative * (sums.reference - hit)
        index = hit / (hit + wrong + 1)
        return (1 - (index * weights).sum() / weights.sum().clamp_min(1)).clamp(0, 1)

    def _partial(self, logits: Tensor, target: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.labels.regions:
            hidden = ~annotated[:, None] & self._members(logits)[None, :, :-1]
            return logits, target, (~hidden.any(2)).float()
        return merge_into_background(logits, annotated), hide_classes(target, annotated), annotated.float()

    def _members(self, logits: Tensor) -> Tensor:
        return self.members.to(logits.device)
