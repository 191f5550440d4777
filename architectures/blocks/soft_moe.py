"""A soft mixture of experts with dynamic slots: all tokens of a map are mixed into slots, and back.

Source: Plotka et al. 2024, Swin SMT, arXiv:2407.07514, after Puigcerver et al. 2023, Soft MoE, arXiv:2308.00951;
written from the description. Dispatch (softmax over tokens) and combine (softmax over slots) are both attention without
scale, tokens being keys once and queries once, so torch's attention kernels spare the matrix of tokens times slots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SoftMoE(nn.Module):
    """x (B, *S, C) -> (B, *S, C): one slot per expert for every `experts` consecutive tokens (row-major)."""

    def __init__(self, width: int, experts: int, *, ratio: float = 4.0):
        super().__init__()
        self.count = experts
        self.norm = UnitNorm(width)
        self.to_slots = nn.Linear(width, experts * width, bias=False)
        self.slot_norm = UnitNorm(width)
        self.experts = Experts(width, experts, int(width * ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        tokens = self.norm(x.flatten(1, -2))
        slots = self.slots(tokens)
        inputs = _mix(slots.flatten(1, 2), tokens, tokens).view_as(slots)
        outputs = self.experts(inputs.transpose(0, 1)).transpose(0, 1)  # experts see (E, B, G, C)
        return _mix(tokens, slots.flatten(1, 2), outputs.flatten(1, 2)).view(x.shape)

    def slots(self, tokens: Tensor) -> Tensor:
        """Return the slots' vectors (B, E, G, C) for normalised tokens (B, N, C), G = ceil(N / E)."""
        batch, number, width = tokens.shape
        groups = math.ceil(number / self.count)
        padded = nn.functional.pad(tokens, (0, 0, 0, groups * self.count - number))
        sums = padded.view(batch, groups, self.count, width).sum(2)
        sizes = torch.full((groups, 1), float(self.count), device=tokens.device)
        sizes[-1] = number - (groups - 1) * self.count  # the last group may be short
        slots = self.to_slots(sums / sizes).view(batch, groups, self.count, width)
        return self.slot_norm(slots.transpose(1, 2))


class Experts(nn.Module):
    """Two-layer perceptrons side by side: x (E, ..., C) -> (E, ..., C), entry e through expert e."""

    def __init__(self, width: int, experts: int, hidden: int):
        super().__init__()
        self.weight1, self.bias1 = _linear(experts, width, hidden)
        self.weight2, self.bias2 = _linear(experts, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the experts' outputs."""
        shape = x.shape
        x = x.flatten(1, -2)  # (E, M, C)
        hidden = nn.functional.gelu(x @ self.weight1 + self.bias1)
        return (hidden @ self.weight2 + self.bias2).view(shape)


class UnitNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the last axis of (..., C), in float32 also under autocast."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors."""
        return nn.functional.normalize(x.to(self.gamma.dtype), dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


def _linear(experts: int, before: int, after: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return weights (E, before, after) and biases (E, 1, after), drawn as torch draws those of a Linear layer."""
    bound = 1 / math.sqrt(before)
    weight = torch.empty(experts, before, after).uniform_(-bound, bound)
    return nn.Parameter(weight), nn.Parameter(torch.empty(experts, 1, after).uniform_(-bound, bound))


def _mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key^T) value for (B, N, C), (B, M, C), (B, M, C)."""
    tensors = (tensor[:, None] for tensor in (query, key, value))
    return nn.functional.scaled_dot_product_attention(*tensors, scale=1.0)[:, 0]
