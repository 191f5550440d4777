"""Attention within windows of a 2D or 3D map of tokens, shifted from block to block, with relative position bias.

Maps are channel-last here, (B, *S, C). Sizes are read from the map, so one block serves any patch: where the map is no
longer than the window on an axis, the window shrinks to it and is not shifted there (the bias table keeps its size,
offsets keep their rows); other maps are padded with zeros, after the norm, to a multiple of the window.

Source: Liu et al. 2021, Swin Transformer, arXiv:2103.14030; in 3D as Swin UNETR, arXiv:2201.01266; written from the
description. Parameter names are Swin's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.patch_merging import pad_to_multiple
from torch import Tensor, nn

HIDDEN = -100.0  # added to the logits of tokens that must not see each other


class SwinStage(nn.Module):
    """x (B, *S, C) -> (B, *S, C): blocks of which every second one is shifted by half a window.

    `drop_path` is one rate or one per block; further keywords go to `SwinBlock`.
    """

    def __init__(
        self, width: int, depth: int, heads: int, window: Sequence[int], *,
        drop_path: float | Sequence[float] = 0.0, **block,
    ):  # fmt: skip
        super().__init__()
        rates = drop_path if isinstance(drop_path, Sequence) else [drop_path] * depth
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, shift=bool(number % 2), drop_path=rates[number], **block)
            for number in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        for block in self.blocks:
            x = block(x)
        return x


class SwinBlock(nn.Module):
    """x + attention in windows of LN(x), then x + MLP(LN(x)): (B, *S, C) -> (B, *S, C).

    `mask_padding` hides the padded tokens, which the published networks let take part. `mlp` replaces the perceptron by
    a module on (B, *S, C).
    """

    def __init__(
        self, width: int, heads: int, window: Sequence[int], *, shift: bool = False, mlp_ratio: float = 4.0,
        qkv_bias: bool = True, drop: float = 0.0, attention_drop: float = 0.0, drop_path: float = 0.0,
        eps: float = 1e-5, mask_padding: bool = False, mlp: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.window, self.shifted, self.mask_padding = tuple(window), shift, mask_padding
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = WindowAttention(width, heads, window, qkv_bias=qkv_bias, attention_drop=attention_drop, drop=drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop=drop) if mlp is None else mlp

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the next block."""
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Return the attended map for a normalised map x (B, *S, C)."""
        sizes = x.shape[1:-1]
        window, shift = fit_window(sizes, self.window, shifted=self.shifted)
        x = pad_to_multiple(x, window)
        padded, axes = x.shape[1:-1], tuple(range(1, len(window) + 1))
        mask = window_mask(sizes, padded, window, shift, device=x.device, hide_padding=self.mask_padding)
        if any(shift):
            x = x.roll(tuple(-step for step in shift), axes)
        x = join_windows(self.attn(split_windows(x, window), window, mask), window, padded)
        if any(shift):
            x = x.roll(shift, axes)
        return x[(slice(None), *(slice(size) for size in sizes))]


class WindowAttention(nn.Module):
    """Multi-head attention with a learned bias per offset and head: windows (n, N, C) -> (n, N, C)."""

    def __init__(
        self, width: int, heads: int, window: Sequence[int], *, qkv_bias: bool = True, attention_drop: float = 0.0,
        drop: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.window, self.attention_drop = heads, tuple(window), attention_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty(math.prod(2 * w - 1 for w in window), heads))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, window: Sequence[int] | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the attended tokens; `window` has N tokens, `mask` (n / batch, N, N) is true where attention ends."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias(window or self.window)[None]  # (1, heads, N, N)
        if mask is not None:
            bias = bias + torch.zeros_like(mask, dtype=bias.dtype).masked_fill_(mask, HIDDEN)[:, None]
            bias = bias.repeat(windows.shape[0] // mask.shape[0], 1, 1, 1)
        rate = self.attention_drop if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=rate)
        merged = torch.cat(mixed.unbind(1), -1)  # a view would tie an exported network to one kernel's strides
        return self.proj_drop(self.proj(merged))

    def bias(self, window: Sequence[int]) -> Tensor:
        """Return the bias (heads, N, N) for a window no larger than the one that the table was made for."""
        index = relative_position_index(window, self.window, device=self.relative_position_bias_table.device)
        return self.relative_position_bias_table[index].permute(2, 0, 1)


def fit_window(
    sizes: Sequence[int], window: Sequence[int], *, shifted: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return window and shift per axis: half a window, but none where the map fits into one window."""
    fitted = tuple(min(size, edge) for size, edge in zip(sizes, window, strict=True))
    shift = tuple(edge // 2 if shifted and size > edge else 0 for size, edge in zip(sizes, window, strict=True))
    return fitted, shift


def split_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Return (B * n, N, C) for x (B, *S, C) with n windows of N tokens each, windows and tokens row-major."""
    dims, shape = len(window), [x.shape[0]]
    for size, edge in zip(x.shape[1:-1], window, strict=True):
        shape += [size // edge, edge]
    x = x.reshape(*shape, x.shape[-1])
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return x.reshape(-1, math.prod(window), x.shape[-1])


def join_windows(windows: Tensor, window: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Undo `split_windows` for a map of these sizes."""
    dims = len(window)
    grid = [size // edge for size, edge in zip(sizes, window, strict=True)]
    x = windows.reshape(-1, *grid, *window, windows.shape[-1])
    pairs = [axis for i in range(dims) for axis in (1 + i, 1 + dims + i)]
    return x.permute(0, *pairs, 1 + 2 * dims).reshape(x.shape[0], *sizes, windows.shape[-1])


def window_mask(
    sizes: Sequence[int], padded: Sequence[int], window: Sequence[int], shift: Sequence[int], *,
    device: torch.device | None = None, hide_padding: bool = False,
) -> Tensor | None:  # fmt: skip
    """Return (n, N, N), true where two tokens of a window of the rolled map must not see each other.

    They must not where rolling made them neighbours, or where the second one is padding that is to be hidden. None: all
    see all.
    """
    hides = hide_padding and tuple(sizes) != tuple(padded)
    if not any(shift) and not hides:
        return None
    dims = len(padded)
    region = torch.zeros((1,) * dims, dtype=torch.long, device=device)
    real = torch.ones((1,) * dims, dtype=torch.bool, device=device)
    for axis, (size, total, edge, step) in enumerate(zip(sizes, padded, window, shift, strict=True)):
        place = torch.arange(total, device=device).view([total if other == axis else 1 for other in range(dims)])
        sides = (place >= total - edge).long() + (place >= total - step).long() if step else torch.zeros_like(place)
        region = region * 3 + sides
        real = real & (place < size).roll(-step, axis)
    windows = split_windows(region[None, ..., None], window)[..., 0]  # (n, N)
    mask = windows[:, :, None] != windows[:, None, :]
    if hides:
        mask = mask | ~split_windows(real[None, ..., None], window)[..., 0][:, None, :]
    return mask


def relative_position_index(
    window: Sequence[int], table: Sequence[int] | None = None, *, device: torch.device | None = None
) -> Tensor:
    """Return (N, N): the row of the bias table, made for windows `table`, of every pair of tokens of `window`."""
    table = table or window
    grid = torch.meshgrid(*(torch.arange(edge, device=device) for edge in window), indexing="ij")
    index = torch.zeros((), dtype=torch.long, device=device)
    for axis, edge in zip(grid, table, strict=True):
        place = axis.flatten()
        index = index * (2 * edge - 1) + place[:, None] - place[None, :] + edge - 1
    return index
