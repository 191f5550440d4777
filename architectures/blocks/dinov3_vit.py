"""The vision transformer of DINOv3: register tokens, axial rotary positions on the patches, LayerScale.

Source: Simeoni et al. 2025, DINOv3, arXiv:2508.10104, in the form of Li et al. 2025, MedDINOv3, arXiv:2509.02379;
written from the description. Parameter names are those of the published weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from autoseg.architectures.blocks.initial_weights import STD, draw_linear
from autoseg.architectures.blocks.mlp import Mlp
from torch import Tensor, nn

BASE = 100.0  # the longest period, in halves of the image
EPSILON = 1e-6


class DinoVisionTransformer(nn.Module):
    """x (B, C, H, W) -> patch tokens of the tapped blocks, each (B, F, H / patch, W / patch), through the final norm.

    The mask token of the pretraining is kept as a buffer, so that weights fit: no image of a segmentation uses it.
    """

    def __init__(
        self, channels: int, width: int, depth: int, heads: int, patch: int, taps: Sequence[int], *,
        storage_tokens: int = 4, qkv_bias: bool = False, drop_path: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        self.taps = tuple(taps)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.storage_tokens = nn.Parameter(torch.empty(1, storage_tokens, width)) if storage_tokens else None
        self.register_buffer("mask_token", torch.zeros(1, width))
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.rope_embed = AxialRope(width // heads)
        self.blocks = nn.ModuleList(
            DinoBlock(width, heads, qkv_bias=qkv_bias, drop_path=drop_path) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.apply(draw_linear)
        for tokens in (self.cls_token, self.storage_tokens):
            if tokens is not None:
                nn.init.normal_(tokens, std=STD)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the tapped maps, in the order of the blocks."""
        x = self.patch_embed.proj(x)
        grid = x.shape[2:]
        extra = self.cls_token if self.storage_tokens is None else torch.cat([self.cls_token, self.storage_tokens], 1)
        tokens = torch.cat([extra.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        turns = self.rope_embed(grid)
        maps = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, turns)
            if number in self.taps:
                maps.append(self.norm(tokens)[:, extra.shape[1] :].mT.unflatten(2, grid))
        return maps


class PatchEmbed(nn.Module):
    """Holds the projection of square patches under its published name."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)


class AxialRope(nn.Module):
    """Angles of patch centres: half of the channels turn by the row, half by the column, with head width / 4 periods.

    Coordinates run from -1 to 1 whatever the size of the grid, so there is nothing to interpolate.
    """

    def __init__(self, head_width: int):
        super().__init__()
        if head_width % 4:
            raise ValueError(f"rotary positions need a head width that 4 divides, got {head_width}")
        bands = torch.arange(head_width // 4, dtype=torch.float32)
        self.register_buffer("periods", BASE ** (2 * bands / (head_width // 2)))

    def forward(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return sine and cosine (H W, head width), float32."""
        periods = self.periods.float()
        axes = [2 * (torch.arange(edge, device=periods.device) + 0.5) / edge - 1 for edge in grid]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)  # (H W, 2)
        angles = (2 * math.pi * places[..., None] / periods).flatten(1).repeat(1, 2)
        return angles.sin(), angles.cos()


def turn(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Return x (..., N, D) with its last tokens, those that sine and cosine (P, D) are for, turned.

    Channel i pairs with channel i + D / 2.
    """
    extra = x.shape[-2] - sine.shape[0]
    still, turning = x[..., :extra, :], x[..., extra:, :]
    first, second = turning.chunk(2, -1)
    turned = turning * cosine + torch.cat([-second, first], -1) * sine
    return torch.cat([still, turned.to(x.dtype)], -2)


class DinoAttention(nn.Module):
    """Multi-head attention whose queries and keys of patches are turned: tokens (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attended tokens."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(turn(q, *turns), turn(k, *turns), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """One factor per channel, small at first."""

    def __init__(self, width: int, start: float = 1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled x (..., C)."""
        return x * self.gamma


class DinoBlock(nn.Module):
    """tokens (B, N, C) -> (B, N, C): attention and perceptron, each normalised before, scaled and added."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = False, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = DinoAttention(width, heads, qkv_bias=qkv_bias)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, 4 * width)
        self.ls2 = LayerScale(width)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return the tokens of the next block."""
        rate = self.drop_path if self.training else 0.0
        tokens = add_on_subset(tokens, lambda x: self.ls1(self.attn(self.norm1(x), turns)), rate)
        return add_on_subset(tokens, lambda x: self.ls2(self.mlp(self.norm2(x))), rate)


def add_on_subset(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Return x (B, ...) + branch(x); with a rate only for max(1, int(B (1 - rate))) samples, drawn, scaled up.

    The branch is not computed for the others. A batch of one is never dropped.
    """
    if rate == 0:
        return x + branch(x)
    batch = x.shape[0]
    kept = max(int(batch * (1 - rate)), 1)
    if kept == batch:
        return x + branch(x)
    chosen = torch.randperm(batch, device=x.device)[:kept]
    return x.index_add(0, chosen, branch(x[chosen]).to(x.dtype), alpha=batch / kept)
