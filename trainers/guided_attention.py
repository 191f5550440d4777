"""Guided attention: the losses that the semantic modules of `ms_dual_guided` are trained with.

Source: Sinha and Dolz, Multi-scale self-guided attention for medical image segmentation, IEEE JBHI 2020,
arXiv:1906.02849; written from the description. The codes of both passes shall agree (weight 0.25), and every semantic
module shall give back what it sees (weight 0.1); both are mean squared differences, with gradients on both sides.

The label loss is cross-entropy alone, as published, by the recipe of `ms_dual_guided`; `--set dice_weight=1` adds the
engine's Dice. Deviations: it is averaged over the outputs where the authors add them up; the guiding losses are divided
by the same number, so that their share is the published one. Published: batches of 8, 500 epochs, the rate halved now
and then; here batch and schedule are the plan's.

Run: `autoseg train DATA 2d 0 --architecture ms_dual_guided --trainer guided_attention`. Costs as much per step as the
default trainer. A network without semantic modules is trained as by the default trainer, and a warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from autoseg import Trainer, register
from autoseg.batches import Batch

log = logging.getLogger(__name__)


@register.trainer("guided_attention")
class GuidedAttention(Trainer):
    """Supervised, plus losses that make the gates of multi-scale self-guided attention know their input."""

    only_for: ClassVar[tuple[str, ...]] = ("ms_dual_guided",)
    code_weight: NonNegativeFloat = 0.25  # of the difference between both passes' codes
    reconstruction_weight: NonNegativeFloat = 0.1  # of the difference between what a semantic module sees and gives
    compile: Literal["auto", "on", "off"] = "off"  # codes are taken by hooks

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the network; every call of its semantic modules is kept while it trains."""
        modules = super().build_modules()
        passes = getattr(modules["network"], "passes", ())
        self._calls: list[list[Call]] = [[] for _ in passes]
        for calls, each in zip(self._calls, passes, strict=True):
            each.semantic.register_forward_hook(_keeper(calls))
        if not self._calls:
            log.warning("this network has no semantic modules to guide; use --architecture ms_dual_guided")
        return modules

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the label loss plus the guiding losses."""
        for calls in self._calls:
            calls.clear()
        batch = batches["labelled"]
        logits = self.modules["network"](self.network_input(batch))
        loss = self.supervised_loss(logits, batch)
        if self._calls:
            outputs = sum(len(calls) for calls in self._calls)  # one per scale before attention, and one after
            loss = loss + self.guiding_loss() / outputs
        yield "network", loss

    def guiding_loss(self) -> Tensor:
        """Return the weighted guiding losses of the last pass through the network, summed over scales."""
        difference = nn.functional.mse_loss
        codes = zip(*([code for _, code, _ in calls] for calls in self._calls), strict=True)
        agree = torch.stack([difference(first.float(), second.float()) for first, second in codes]).sum()
        seen = [difference(given.float(), seen.float()) for calls in self._calls for seen, _, given in calls]
        return self.code_weight * agree + self.reconstruction_weight * torch.stack(seen).sum()


Call = tuple[Tensor, Tensor, Tensor]  # what a semantic module saw, its code, what it gave back


def _keeper(calls: list[Call]) -> Any:
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]) -> None:
        if module.training:
            calls.append((inputs[0], *outputs))

    return keep
