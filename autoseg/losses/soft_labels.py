"""Soft labels: one network's probabilities as another's target. Source: Hinton et al. 2015, arXiv:1503.02531."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def soft_label_loss(
    students: Tensor | Sequence[Tensor], teacher: Tensor, temperature: float, *, regions: bool = False
) -> Tensor:
    """Return T^2 times the mean of KL(teacher || student) of softened probabilities; logits (B, K, *S).

    Of several students it is the sum; what the teacher says is worked out once. Computed in float32, with closed-form
    gradients for students and teacher.
    """
    several = [students] if isinstance(students, Tensor) else list(students)
    if regions:
        teacher, several = _two_outcomes(teacher), [_two_outcomes(each) for each in several]
    return _Divergence.apply(temperature, teacher.float(), *(each.float() for each in several))


def _two_outcomes(logits: Tensor) -> Tensor:
    """Return the two outcomes of each region as two classes."""
    return torch.stack([logits, torch.zeros_like(logits)], 2).flatten(0, 1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, temperature: float, teacher: Tensor, *students: Tensor) -> Tensor:
        taught = torch.log_softmax(teacher / temperature, 1)
        target = taught.exp()
        total = torch.zeros((), device=teacher.device)
        apart = torch.zeros_like(taught) if ctx.needs_input_grad[1] else None  # log-ratios of all students, summed
        probabilities = []
        for student in students:
            learned = torch.log_softmax(student / temperature, 1)
            ratio = taught - learned
            if apart is not None:
                apart += ratio
            total += ratio.mul_(target).sum()
            probabilities.append(learned.exp_())
        ctx.per_voxel = temperature * target.shape[1] / target.numel()
        ctx.save_for_backward(target, apart, *probabilities)
        return total * (temperature * ctx.per_voxel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        target, apart, *probabilities = ctx.saved_tensors
        scale = grad * ctx.per_voxel
        of_students = [(each - target).mul_(scale) for each in probabilities]
        if apart is None:
            return None, None, *of_students
        mean = (apart * target).sum(1, keepdim=True)
        return None, (apart - mean).mul_(target).mul_(scale), *of_students
