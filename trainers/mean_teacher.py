"""Mean teacher: unlabelled patches must look the same to the network and to the moving average of its weights.

Source: Tarvainen & Valpola, Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780. As there: softmax
(sigmoid for regions) outputs compared by mean squared error, weight exp(-5 (1 - t)^2) over the ramp-up, teacher decay
min(1 - 1/(n + 1), decay) after step n, teacher predicts. Deviations: the error is a mean over voxels and outputs and is
taken on unlabelled patches only; both networks see one augmented patch with noise of their own (as Yu et al. 2019,
arXiv:1907.07034), since segmentations must stay aligned; the ramp-up is a share of the run; `consistency` is 10, where
Yu et al. publish 0.1, as a mean over voxels of near-certain outputs is small: measured below.

Run: `autoseg train DATA 3d_fullres 0 --trainer mean_teacher --labelled 10`, or with images in `imagesUn`. Expected: one
and a half to two and a half times the time of `supervised`. Give it steps: after 500 it gains nothing (with a few
hundred, set `consistency=1`: more harms). Measured on hippocampus slices, 10 of 160 cases labelled, 3000 steps, three
seeds: Dice 0.830, 0.814, 0.818 where `supervised` has 0.816, 0.800, 0.795 (benchmarks/RESULTS.md); a weight of 1 gains
less (0.820 against 0.826 on another fold, where `supervised` has 0.816).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from autoseg import Trainer, register
from autoseg.batches import Batch, PatchStream
from autoseg.losses import full_resolution, split_outputs
from autoseg.training.averaging import WeightAverage
from autoseg.training.trainer import Share


@register.trainer("mean_teacher")
class MeanTeacher(Trainer):
    """Semi-supervised: a moving average of the network teaches it on unlabelled cases, by consistency."""

    teacher_decay: Share = 0.99  # of the moving average
    consistency: NonNegativeFloat = 10.0  # largest weight of the consistency loss
    ramp_up: Share = 0.4  # share of the run in which that weight rises
    noise: NonNegativeFloat = 0.1  # standard deviation of the noise on unlabelled patches, cut at twice that
    predicts: Literal["teacher", "student"] = "teacher"

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the network and its teacher, a copy without gradients."""
        modules = super().build_modules()
        self._teacher = WeightAverage(modules["network"], self.teacher_decay)
        return {**modules, "teacher": self._teacher.module}

    def build_streams(self) -> dict[str, PatchStream]:
        """Return the labelled and the unlabelled stream."""
        return {**super().build_streams(), "unlabelled": self.unlabelled_stream()}

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the supervised loss plus the weighted consistency; one pass of the student for both."""
        labelled, unlabelled = batches["labelled"], self.network_input(batches["unlabelled"])
        images = torch.cat([self.network_input(labelled), self.perturbed(unlabelled)])
        known, guessed = split_outputs(self.modules["network"](images), len(labelled.image))
        taught = self.teach(self.perturbed(unlabelled))
        consistency = (self.probabilities(full_resolution(guessed)) - self.probabilities(taught)).square().mean()
        yield "network", self.supervised_loss(known, labelled) + self.consistency_weight(progress) * consistency

    def consistency_weight(self, progress: float) -> float:
        """Return the weight of the consistency loss: the sigmoid-shaped ramp-up of the paper."""
        rest = 1 - min(1.0, progress / self.ramp_up) if self.ramp_up > 0 else 0.0
        return self.consistency * math.exp(-5 * rest**2)

    def decay(self, progress: float) -> float:
        """Return the teacher's decay after the present step; 0 after the first, as the random start teaches nothing."""
        return min(1 - 1 / (self.step + 1), self.teacher_decay)

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        super().after_step(progress)
        self._teacher.follow(self.decay(progress))

    def inference_module(self) -> nn.Module:
        """Return the teacher or the student."""
        return self.modules["teacher"] if self.predicts == "teacher" else super().inference_module()

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (B, K, *S)."""
        return full_resolution(self.modules["teacher"](images))

    def perturbed(self, images: Tensor) -> Tensor:
        """Return images with noise."""
        noise = torch.randn_like(images) * self.noise
        return images + noise.clamp(-2 * self.noise, 2 * self.noise)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities (B, K, *S), float32: of exclusive classes, or of each region."""
        return logits.float().sigmoid() if self.labels.regions else logits.float().softmax(1)
