"""What a network gives out: logits, or a list of them with deep supervision."""

from __future__ import annotations

from torch import Tensor

Outputs = Tensor | list[Tensor]  # (B, K, *S), or a list of such, highest resolution first


def full_resolution(logits: Outputs) -> Tensor:
    """Return the logits of highest resolution."""
    return logits if isinstance(logits, Tensor) else logits[0]


def split_outputs(logits: Outputs, count: int) -> tuple[Outputs, Outputs]:
    """Return the logits of the first `count` samples and those of the others, with deep supervision or without."""
    if isinstance(logits, Tensor):
        return logits[:count], logits[count:]
    return [output[:count] for output in logits], [output[count:] for output in logits]
