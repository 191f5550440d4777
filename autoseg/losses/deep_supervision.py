"""One loss on several resolutions. Source: nnU-Net v2 (Apache-2.0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed, nn

_NEARLY_ZERO = 1e-6  # every parameter needs a gradient in a distributed run


def deep_supervision_weights(outputs: int) -> list[float]:
    """Return the weights, highest resolution first: halved from one to the next, the last one 0, their sum 1."""
    if outputs <= 1:  # a network of a single resolution has one output, too
        return [1.0]
    last = _NEARLY_ZERO if distributed.is_available() and distributed.is_initialized() else 0.0
    weights = [0.5**output for output in range(outputs - 1)] + [last]
    return [weight / sum(weights) for weight in weights]


class DeepSupervisionLoss(nn.Module):
    """The weighted sum of a loss over the outputs of a network, the target down-sampled to each of them.

    Without `weights` the `outputs` are weighted as `deep_supervision_weights` has it.
    """

    def __init__(self, loss: Callable[..., Tensor], outputs: int, weights: Sequence[float] | None = None):
        super().__init__()
        self.loss = loss
        self.weights = list(weights or deep_supervision_weights(outputs))

    def forward(
        self, logits: Tensor | Sequence[Tensor], segmentation: Tensor, annotated: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar.

        logits: (B, K, *S), or a list of such, highest resolution first; segmentation (B, *S) integer.
        """
        # A loss for fully annotated data need not know of the third argument.
        partial = () if annotated is None else (annotated,)
        if isinstance(logits, Tensor):
            return self.loss(logits, segmentation, *partial)
        if len(logits) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} outputs, the network gave {len(logits)}")
        terms = [
            weight * self.loss(output, downsample(segmentation, output.shape[2:]), *partial)
            for output, weight in zip(logits, self.weights, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()


def downsample(segmentation: Tensor, shape: Sequence[int]) -> Tensor:
    """Pick from (B, *S) the voxels nearest to the centres of a coarser grid ("nearest-exact")."""
    for axis, size in enumerate(shape, start=1):
        length = segmentation.shape[axis]
        if size != length:
            positions = ((torch.arange(size, device=segmentation.device) * 2 + 1) * length) // (2 * size)
            segmentation = segmentation.index_select(axis, positions)
    return segmentation
