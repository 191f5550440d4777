"""Exponential moving average of weights. Source: Tarvainen & Valpola 2017 (with their ramp-up of the decay)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A copy of a module whose weights follow it: average = decay * average + (1 - decay) * weights.

    The decay rises with the step n, (1 + n) / (10 + n), up to `decay`, so that the random start is forgotten.
    """

    def __init__(self, source: nn.Module, decay: float):
        self.source = source
        self.decay = decay
        self.module = copy.deepcopy(source).requires_grad_(False)

    def update(self, step: int) -> None:
        """Move the average one step towards the source, after optimiser step `step` (from 0)."""
        self.follow(min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the source with a decay of the caller's; 0 copies the weights."""
        averaged = [p for p in self.module.parameters() if p.is_floating_point()]
        current = [p for p in self.source.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(averaged, [p.detach() for p in current], 1.0 - decay)
        source_buffers = dict(self.source.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(source_buffers[name])
