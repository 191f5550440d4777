"""Attention within groups of tokens, near ones or ones spread over the whole map, and the block that alternates them.

Maps are channel-last here, (B, *S, C). Local groups are boxes of neighbouring tokens; dilated groups take every I-th
token along an axis, I being the size of the map over that of the group, so they reach over the whole map at the same
cost. Sizes are read from the map: maps are padded at the end to multiples of the group, padding is not attended to.

Source: Wu et al. 2022, D-Former, arXiv:2201.00462; written from the description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.patch_merging import pad_to_multiple
from torch import Tensor, nn


class DilatedStage(nn.Module):
    """x (B, *S, C) -> (B, *S, C): blocks whose groups are local and dilated in turn."""

    def __init__(self, width: int, depth: int, heads: int, group: Sequence[int], **block):
        super().__init__()
        self.blocks = nn.ModuleList(
            DilatedBlock(width, heads, group, dilated=bool(number % 2), **block) for number in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        for block in self.blocks:
            x = block(x)
        return x


class DilatedBlock(nn.Module):
    """x + attention in groups of LN(x), then x + MLP(LN(x)): (B, *S, C) -> (B, *S, C)."""

    def __init__(
        self, width: int, heads: int, group: Sequence[int], *, dilated: bool, mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = GroupAttention(width, heads, group, dilated=dilated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the next block."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GroupAttention(nn.Module):
    """Multi-head attention among the tokens of each group, without position bias: (B, *S, C) -> (B, *S, C)."""

    def __init__(self, width: int, heads: int, group: Sequence[int], *, dilated: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.group, self.dilated = heads, tuple(group), dilated
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, without a residual."""
        sizes = x.shape[1:-1]
        group = fit_group(sizes, self.group)
        mask = key_mask(sizes, group, dilated=self.dilated, device=x.device)
        x = pad_to_multiple(x, group)
        tokens = split_groups(x, group, dilated=self.dilated)
        if mask is not None:
            mask = mask.repeat(tokens.shape[0] // mask.shape[0], 1)[:, None, None]
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        mixed = join_groups(mixed, group, x.shape[1:-1], dilated=self.dilated)
        return mixed[(slice(None), *(slice(size) for size in sizes))]


def fit_group(sizes: Sequence[int], group: Sequence[int]) -> tuple[int, ...]:
    """Return the group for a map of these sizes: no longer than the map, and the whole of a map that is small.

    Small is one that is shorter than the group along all axes; in 3D the first, across slices, does not count.
    """
    if all(size < edge for size, edge in zip(sizes[-2:], group[-2:], strict=True)):
        return tuple(sizes)
    return tuple(min(size, edge) for size, edge in zip(sizes, group, strict=True))


def split_groups(x: Tensor, group: Sequence[int], *, dilated: bool) -> Tensor:
    """Return (B * n, N, C) for x (B, *S, C), S multiples of the group: n groups of N tokens, both row-major.

    Local: group i holds the tokens i g to i g + g - 1 of an axis; dilated: the tokens i + a I for a < g.
    """
    dims, shape = len(group), [x.shape[0]]
    for size, edge in zip(x.shape[1:-1], group, strict=True):
        shape += [edge, size // edge] if dilated else [size // edge, edge]
    x = x.reshape(*shape, x.shape[-1]).permute(0, *_group_axes(dims, dilated), 2 * dims + 1)
    return x.reshape(-1, math.prod(group), x.shape[-1])


def join_groups(groups: Tensor, group: Sequence[int], sizes: Sequence[int], *, dilated: bool) -> Tensor:
    """Undo `split_groups` for a map of these sizes."""
    dims = len(group)
    counts = [size // edge for size, edge in zip(sizes, group, strict=True)]
    x = groups.reshape(-1, *counts, *group, groups.shape[-1])
    axes = _group_axes(dims, dilated)
    back = [1 + axes.index(axis) for axis in range(1, 2 * dims + 1)]
    return x.permute(0, *back, 2 * dims + 1).reshape(x.shape[0], *sizes, groups.shape[-1])


def key_mask(
    sizes: Sequence[int], group: Sequence[int], *, dilated: bool, device: torch.device | None = None
) -> Tensor | None:
    """Return (n, N), true for the tokens of each group that are no padding; None: none is padding."""
    if not any(size % edge for size, edge in zip(sizes, group, strict=True)):
        return None
    real = pad_to_multiple(torch.ones(1, *sizes, 1, device=device), group)
    return split_groups(real, group, dilated=dilated)[..., 0] > 0


def _group_axes(dims: int, dilated: bool) -> list[int]:
    """Return the axes that count groups, then those of a group's tokens, each axis being (outer, inner)."""
    outer, inner = list(range(1, 2 * dims, 2)), list(range(2, 2 * dims + 1, 2))
    return [*inner, *outer] if dilated else [*outer, *inner]
