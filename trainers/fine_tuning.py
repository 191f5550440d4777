"""Fine-tuning of a pretrained network: a lower learning rate that rises slowly, so that what was learnt is not lost.

Source: Wald et al., CVPR 2025, arXiv:2410.23132, the schedules "default warm-up" and "sawtooth". Deviations: epochs
are shares of the run (50 of 1000 epochs are 0.05); values are those that the paper's steps reach at the end of an
epoch; the optimiser keeps its state between the stages of the sawtooth; the input layer belongs to the encoder even
where the number of channels differs; the tenth of the learning rate is that of nnU-Net's SGD. The AdamW of short runs
keeps its rate, as the fresh decoder does not get anywhere else.

Authors who only freeze the encoder at first: `--set frozen=0.033` leaves it as it is for 10 of 300 epochs, and
`--set rate_share=1` keeps their learning rate, as for `msvm_unet`.

Run: `autoseg train DATA 3d_fullres --trainer fine_tuning --pretrained RUN`. Expected: the cost of `supervised`.
Measured on hippocampus, 10 labelled cases, 500 steps of AdamW, weights of `masked_autoencoder`, three seeds: Dice
0.846, 0.839 and 0.850, with deep supervision 0.848, 0.838 and 0.850; `supervised` from the same weights 0.847, 0.842
and 0.851, from scratch 0.831, 0.847 and 0.851: no difference beyond the seeds'. A tenth of the rate, in an earlier
measurement, gave 0.826, 0.822 and 0.384 (a class never found), four tenths 0.837 where 0.384 was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat

from autoseg import Trainer, register
from autoseg.batches import Batch


@register.trainer("fine_tuning")
class FineTuning(Trainer):
    """The supervised recipe for pretrained weights: warm-up, or sawtooth (decoder first), at a lower learning rate."""

    stages: Literal["warmup", "sawtooth"] = "warmup"  # sawtooth: the decoder alone rises and decays first
    warmup: Annotated[float, Field(ge=0, lt=1)] = (
        0.05  # share of the run in which the whole network's learning rate rises
    )
    deep_supervision: bool = False  # as published for these schedules
    frozen: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the run at whose start the encoder is left as it is
    rate_share: PositiveFloat | None = None  # of the learning rate from scratch; None: 0.1 of SGD's, all of AdamW's
    warmup_steps: NonNegativeInt = 0
    warmup_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # its schedule has the warm-up

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimiser of training from scratch at the lower learning rate."""
        optimizer = super().make_optimizer(parameters)
        share = self.rate_share
        if share is None:
            share = 0.1 if self.optimizer == "sgd" else 1.0
        for group in optimizer.param_groups:
            group["lr"] *= share
        return optimizer

    def schedule(self, progress: float) -> float:
        """Return the factor: up linearly, then the polynomial decay; for the sawtooth twice."""
        half = self.warmup / 2
        if self.stages == "sawtooth":
            if progress < self.warmup:
                return rise_and_decay(progress / self.warmup, half / self.warmup)
            return rise_and_decay((progress - self.warmup) / (1 - self.warmup), self.warmup / (1 - self.warmup))
        return rise_and_decay(progress, self.warmup)

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the supervised loss; the encoder is left alone while only the decoder learns, or it is frozen."""
        if progress >= max(self.frozen, self.warmup if self.stages == "sawtooth" else 0.0):
            yield from super().training_step(batches, progress)
            return
        batch, network = batches["labelled"], self.modules["network"]
        with torch.no_grad():
            features = network.encode(self.network_input(batch))
        yield "network", self.supervised_loss(network.decode(features), batch)


def rise_and_decay(progress: float, rise: float) -> float:
    """Return progress / rise up to `rise`, then nnU-Net's polynomial over the rest."""
    if progress < rise:
        return progress / rise
    return max(0.0, 1 - (progress - rise) / (1 - rise)) ** 0.9
