"""An upsampled feature map and the encoder's map of the same size, its skip, as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from autoseg.cpu_layers import UPSAMPLINGS, computes_on_cpu, is_plain

VALUES_AT_ONCE = 2**22  # of the skip beside the part that is upsampled at a time
FEWEST_ROWS = 2  # of a part: torch upsamples a single slice without oneDNN, which takes longer than all the rest


def joined(upsample: nn.Module, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Return `torch.cat((upsample(x), skip), 1)`, without a gradient, of maps (B, C, *S) and (B, K, *S').

    On a CPU a large map of a single image is upsampled part by part into its place, so that it is never there twice:
    where its kernel is its stride, a transposed convolution of some rows gives that part of the result.
    """
    if not computes_on_cpu(x) or not _is_divisible(upsample, x, skip):
        return torch.cat((upsample(x), skip), 1)
    rows = max(FEWEST_ROWS, VALUES_AT_ONCE // (skip.numel() // x.shape[2]))
    count = min(-(-x.shape[2] // rows), x.shape[2] // FEWEST_ROWS)
    if count < 2:
        return torch.cat((upsample(x), skip), 1)
    return _joined_by_parts((upsample(part) for part in x.tensor_split(count, 2)), skip)


def _is_divisible(upsample: nn.Module, x: torch.Tensor, skip: torch.Tensor) -> bool:
    if not is_plain(upsample, *UPSAMPLINGS) or upsample.kernel_size != upsample.stride:
        return False
    if any((*upsample.padding, *upsample.output_padding)) or any(step != 1 for step in upsample.dilation):
        return False
    size = tuple(length * factor for length, factor in zip(x.shape[2:], upsample.stride, strict=True))
    return skip.numel() > 0 and len(x) == len(skip) == 1 and size == tuple(skip.shape[2:])


def _joined_by_parts(parts: Iterable[torch.Tensor], skip: torch.Tensor) -> torch.Tensor:
    """Return a map, given as parts along its first axis, with the skip behind it; it lies as the skip does."""
    whole, row = None, 0
    for part in parts:
        if whole is None:
            whole = _room_for(part, skip)
        whole[:, : part.shape[1]].narrow(2, row, part.shape[2]).copy_(part)
        row += part.shape[2]
    whole[:, -skip.shape[1] :].copy_(skip)
    return whole


def _room_for(part: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    last = (torch.channels_last, torch.channels_last_3d)[skip.ndim - 4]
    return torch.empty(
        (1, part.shape[1] + skip.shape[1], *skip.shape[2:]),
        dtype=torch.promote_types(part.dtype, skip.dtype),
        memory_format=last if skip.stride(1) == 1 else torch.contiguous_format,
    )
