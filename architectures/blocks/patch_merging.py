"""Patch merging and patch expanding: from neighbouring tokens to channels and back, 2D and 3D, any strides.

Maps are channel-last here, (B, *S, C), as the tokens of transformers are. A stride of 1 keeps an axis, so coarse axes
stay as the plan wants them; k is the product of the strides, the tokens that become one.

Source: Liu et al. 2021, Swin Transformer, arXiv:2103.14030 (merging); Cao et al. 2021, Swin-Unet, arXiv:2105.05537
(expanding); written from the description.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ORDERS = ("first_fastest", "last_fastest", "swin_unetr")
# Swin UNETR's first version takes two of the eight neighbours twice and leaves two out; its weights need that.
SWIN_UNETR = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class PatchMerging(nn.Module):
    """x (B, *S, C) -> (B, *ceil(S / stride), out): the k neighbours concatenated, LayerNorm, Linear without bias.

    `out` is 2 C unless given. Maps that the stride does not divide are zero-padded at the end. `order` of the
    neighbours: see `merge_offsets`.
    """

    def __init__(
        self, width: int, stride: Sequence[int], *, out: int | None = None, order: str = "first_fastest",
        eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        self.stride, self.order = tuple(stride), order
        merged = math.prod(stride) * width
        self.norm = nn.LayerNorm(merged, eps=eps)
        self.reduction = nn.Linear(merged, out or 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged map."""
        return self.reduction(self.norm(space_to_channels(x, self.stride, self.order)))


class PatchExpanding(nn.Module):
    """x (B, *S, C) -> (B, *S * stride, out): Linear C -> k out without bias, shuffled to space, LayerNorm.

    `out` is C / 2 unless given. The k parts of a token fill its block row-major.
    """

    def __init__(self, width: int, stride: Sequence[int], *, out: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.stride = tuple(stride)
        out = out or width // 2
        self.expand = nn.Linear(width, math.prod(stride) * out, bias=False)
        self.norm = nn.LayerNorm(out, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the expanded map."""
        return self.norm(channels_to_space(self.expand(x), self.stride))


def merge_offsets(stride: Sequence[int], order: str = "first_fastest") -> list[tuple[int, ...]]:
    """Return the offsets of the k neighbours within a block, in the order in which they are concatenated.

    "first_fastest" is Swin's, (0,0), (1,0), (0,1), (1,1); "last_fastest" is row-major; "swin_unetr" is the first
    version of Swin UNETR in 3D, which has that quirk for strides of 2 on all axes only, else it is row-major.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    if order == "swin_unetr" and tuple(stride) == (2, 2, 2):
        return list(SWIN_UNETR)
    if order == "first_fastest":
        return [offset[::-1] for offset in itertools.product(*(range(step) for step in reversed(stride)))]
    return list(itertools.product(*(range(step) for step in stride)))


def space_to_channels(x: Tensor, stride: Sequence[int], order: str = "first_fastest") -> Tensor:
    """Return (B, *ceil(S / stride), k C) for x (B, *S, C); what is missing at the end is zero."""
    x = pad_to_multiple(x, stride)
    parts = [
        x[(slice(None), *(slice(start, None, step) for start, step in zip(offset, stride, strict=True)))]
        for offset in merge_offsets(stride, order)
    ]
    return torch.cat(parts, -1)


def channels_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Return (B, *S * stride, C) for x (B, *S, k C), whose channels are ordered (block row-major, C)."""
    dims, sizes = len(stride), x.shape[1:-1]
    x = x.unflatten(-1, (*stride, -1))  # (B, *S, *stride, C)
    pairs = [axis for i in range(dims) for axis in (1 + i, 1 + dims + i)]
    x = x.permute(0, *pairs, 1 + 2 * dims)
    edges = [size * step for size, step in zip(sizes, stride, strict=True)]
    return x.reshape(x.shape[0], *edges, x.shape[-1])


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """Return x (B, *S, C) with zeros at the end of every axis, so that `multiple` divides the axis."""
    missing = [-size % step for size, step in zip(x.shape[1:-1], multiple, strict=True)]
    if not any(missing):
        return x
    return nn.functional.pad(x, (0, 0, *(edge for pad in reversed(missing) for edge in (0, pad))))
