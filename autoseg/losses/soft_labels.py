"""Soft labels: one network's probabilities as another's target. Source: Hinton et al. 2015, arXiv:1503.02531."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float, *, regions: bool = False) -> Tensor:
    """Return T^2 times the mean of KL(teacher || student) of softened probabilities; logits (B, K, *S)."""
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if regions:  # the two outcomes of each region as two classes
        student, teacher = (torch.stack([each, torch.zeros_like(each)], 2).flatten(0, 1) for each in (student, teacher))
    log_student, log_teacher = functional.log_softmax(student, 1), functional.log_softmax(teacher, 1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return temperature**2 * divergence.mean()
