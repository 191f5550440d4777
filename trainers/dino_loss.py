"""The loss of self-distillation, and its schedules: cross-entropy between a sharp, centred teacher and the student.

Source: Caron et al. 2021, DINO, arXiv:2104.14294, equations 1 to 4; written from the description.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CENTRE_MOMENTUM = 0.9
STUDENT_TEMPERATURE = 0.1
FIRST_TEMPERATURE = 0.04  # the teacher's at the start
LARGE = 2  # crops that the teacher sees


class SelfDistillationLoss(nn.Module):
    """Scores of the student (V * B, K), of the teacher (2 * B, K), crop by crop -> scalar; keeps the centre.

    It is the mean, over pictures and over all pairs of a large crop and another crop, of the cross-entropy of the
    student's distribution on the other against the teacher's on the large one. The centre, an average of the teacher's
    scores, is subtracted from them, so that no output wins everywhere; the low temperature keeps them from being even.
    """

    def __init__(self, outputs: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(outputs))

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the loss with the present centre, which then follows the teacher's scores of this batch."""
        student, teacher = student.float(), teacher.detach().float()
        pictures = len(teacher) // LARGE
        targets = self.targets(teacher, temperature).unflatten(0, (LARGE, pictures))
        guesses = (student / STUDENT_TEMPERATURE).log_softmax(-1).unflatten(0, (-1, pictures))
        every = -torch.einsum("gbk,vbk->gvb", targets, guesses).mean(2)  # (2, V)
        pairs = every.sum() - every.diagonal().sum()  # a crop is not compared with itself
        self.follow(teacher)
        return pairs / (every.numel() - LARGE)

    def targets(self, teacher: Tensor, temperature: float) -> Tensor:
        """Return the teacher's distributions (n, K)."""
        return ((teacher - self.centre) / temperature).softmax(-1)

    @torch.no_grad()
    def follow(self, teacher: Tensor) -> None:
        """Move the centre towards the mean score of a batch, over all processes."""
        mean = teacher.mean(0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        self.centre.lerp_(mean, 1 - CENTRE_MOMENTUM)


def distinction(distributions: Tensor) -> tuple[float, float]:
    """Return (mean entropy, mean divergence from their mean) of distributions (n, K), in nats.

    Where all pictures get the same distribution, the divergence is 0: training has collapsed, whatever the entropy is.
    """
    mean = distributions.mean(0)
    entropy = torch.special.entr(distributions).sum(-1).mean()
    return entropy.item(), (torch.special.entr(mean).sum() - entropy).item()


def cosine(start: float, end: float, progress: float) -> float:
    """Return the value at `progress` in [0, 1] of a half cosine from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def teacher_temperature(progress: float, warmup: float, last: float) -> float:
    """Return the teacher's temperature: it moves linearly from 0.04 to the last over the share `warmup` of the run."""
    return last if progress >= warmup else FIRST_TEMPERATURE + (last - FIRST_TEMPERATURE) * progress / warmup
