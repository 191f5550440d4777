"""The sums over voxels that Dice and cross-entropy are made of, with closed-form gradients.

Neither a one-hot target nor a mask of the size of the logits is ever built: besides the network's output only one
float32 array of probabilities (softmax), or nothing (sigmoid), is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sums(NamedTuple):
    """Sums over the voxels of each sample, axes (B, K): K classes, or regions."""

    cross_entropy: Tensor  # (B,) summed over voxels, for regions (B, K)
    intersection: Tensor  # of probability where the class is the target
    predicted: Tensor  # of probability
    reference: Tensor  # number of voxels of the class


def softmax_sums(logits: Tensor, target: Tensor, valid: Tensor | None) -> Sums:
    """Return the sums for exclusive classes.

    logits (B, K, *S), target (B, *S) integer in 0..K-1 wherever `valid` (B, *S) bool is True; None: everywhere.
    Computed in float32.
    """
    index = target.flatten(1).clamp(min=0).long()
    if valid is not None:
        valid = valid.flatten(1)
        index.mul_(valid)
    return Sums(*_SoftmaxSums.apply(logits.flatten(2).float(), index, valid))


def sigmoid_sums(logits: Tensor, target: Tensor, members: Tensor, valid: Tensor | None) -> Sums:
    """Return the sums for regions that may overlap.

    logits (B, R, *S), target (B, *S) integer values, members (R, values) bool: which value belongs to which region.
    """
    index = target.flatten(1).clamp(min=0).long()
    return Sums(*_SigmoidSums.apply(logits.flatten(2), index, members, None if valid is None else valid.flatten(1)))


def squared_sums(probabilities: Tensor, valid: Tensor | None) -> Tensor:
    """Return the sums (B, K) of squared probabilities (B, K, *S) over the voxels where `valid` (B, *S) is True."""
    squares = probabilities.flatten(2).square()
    return squares.sum(2) if valid is None else (squares * valid.flatten(1)[:, None]).sum(2)


class _SoftmaxSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        log_probabilities = torch.log_softmax(logits, 1)
        entropy = log_probabilities.gather(1, index[:, None])[:, 0].neg_()
        probabilities = log_probabilities.exp_()
        if valid is not None:
            entropy.mul_(valid)
            probabilities.mul_(valid[:, None])
        of_target = probabilities.gather(1, index[:, None])[:, 0]
        intersection, reference = [], []
        for label in range(logits.shape[1]):
            hit = index == label
            if valid is not None:
                hit &= valid
            intersection.append((of_target * hit).sum(1))
            reference.append(hit.sum(1))
        ctx.save_for_backward(probabilities, index, valid)
        reference = torch.stack(reference, 1).to(logits.dtype)
        ctx.mark_non_differentiable(reference)
        return entropy.sum(1), torch.stack(intersection, 1), probabilities.sum(2), reference

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, entropy_grad: Tensor, intersection_grad: Tensor, predicted_grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        probabilities, index, valid = ctx.saved_tensors
        at_target = probabilities.gather(1, index[:, None])[:, 0].mul_(intersection_grad.gather(1, index))
        weighted = at_target.clone()  # sum over k of p_k dL/dp_k
        for label in range(probabilities.shape[1]):
            weighted.addcmul_(probabilities[:, label], predicted_grad[:, label, None])
        gradient = (predicted_grad + entropy_grad[:, None])[:, :, None] - weighted[:, None]
        gradient.mul_(probabilities)
        here = entropy_grad[:, None] if valid is None else entropy_grad[:, None] * valid
        gradient.scatter_add_(1, index[:, None], at_target.sub_(here)[:, None])
        return gradient, None, None


class _SigmoidSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, members: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        columns = []
        for region in range(logits.shape[1]):
            scores, hit = logits[:, region].float(), members[region][index]
            probability = torch.sigmoid(scores)
            entropy = torch.nn.functional.softplus(scores) - scores * hit
            if valid is not None:
                probability.mul_(valid)
                entropy.mul_(valid)
                hit &= valid
            columns.append((entropy.sum(1), (probability * hit).sum(1), probability.sum(1), hit.sum(1).float()))
        ctx.save_for_backward(logits, index, members, valid)
        results = tuple(torch.stack(column, 1) for column in zip(*columns, strict=True))
        ctx.mark_non_differentiable(results[3])
        return results

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, entropy_grad: Tensor, intersection_grad: Tensor, predicted_grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, index, members, valid = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for region in range(logits.shape[1]):
            hit = members[region][index].float()
            probability = torch.sigmoid(logits[:, region].float())
            slope = hit * intersection_grad[:, region, None] + predicted_grad[:, region, None]
            slope.mul_(probability * (1 - probability)).add_(entropy_grad[:, region, None] * (probability - hit))
            gradient[:, region] = slope if valid is None else slope.mul_(valid)
        return gradient, None, None, None
