"""The least that a training step consists of, to be timed or traced: loss over all outputs, optimiser, precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def training_loss(logits: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus soft Dice over all outputs with halving weights; target (B, *S) int64."""
    outputs = [logits] if isinstance(logits, torch.Tensor) else list(logits)
    total = target.new_zeros((), dtype=torch.float32)
    for level, output in enumerate(outputs):
        output = output.float()
        size = output.shape[2:]
        scaled = nn.functional.interpolate(target[:, None].float(), size, mode="nearest")[:, 0].long()
        probabilities = output.softmax(1)
        one_hot = torch.zeros_like(output).scatter_(1, scaled[:, None], 1)
        axes = tuple(range(2, output.ndim))
        overlap = (probabilities * one_hot).sum(axes)
        dice = (2 * overlap + 1e-5) / (probabilities.sum(axes) + one_hot.sum(axes) + 1e-5)
        total = total + 0.5**level * (nn.functional.cross_entropy(output, scaled) - dice[:, 1:].mean())
    return total


def make_optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return "adamw" or "sgd" with momentum."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, 1e-3)
    return torch.optim.SGD(parameters, 0.01, momentum=0.99, nesterov=True)
