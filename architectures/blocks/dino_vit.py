"""The vision transformer of DINO, to be trained: its class token, and what that attends to.

Source: Dosovitskiy et al. 2021, ViT, arXiv:2010.11929; names of the weights and positions of other grids as in Caron et
al. 2021, DINO, arXiv:2104.14294; written from the descriptions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from autoseg.architectures.blocks.vit import ViTBlock
from torch import Tensor, nn


class ViTSize(NamedTuple):
    """A vision transformer: channels, blocks, heads, edge of its patches, patches per side it was trained on."""

    width: int
    depth: int
    heads: int
    patch: int
    side: int


class DinoViT(nn.Module):
    """Pictures x (B, 3, H, W), normalised, sides of whole patches -> features of the class token (B, width)."""

    def __init__(self, size: ViTSize):
        super().__init__()
        self.size = size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + size.side**2, size.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size.width, size.patch, size.patch)})
        self.blocks = nn.ModuleList(ViTBlock(size.width, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    @property
    def weights_metadata(self) -> dict[str, str]:
        """Return what a file of the weights has to tell beside them: no shape gives the number of heads."""
        return {"heads": str(self.size.heads)}

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the class token after the last norm."""
        tokens, _ = self._embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def attention(self, x: Tensor) -> Tensor:
        """Return (B, heads, H / patch, W / patch), positive: what the class token of the last block gives to patches.

        With what it gives to itself they sum to 1.
        """
        tokens, grid = self._embed(x)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        q, k, _ = last.attn.qkv(last.norm1(tokens)).unflatten(-1, (3, self.size.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q[:, :, :1] @ k.mT * q.shape[-1] ** -0.5).float().softmax(-1)  # (B, heads, 1, 1 + n)
        return weights[:, :, 0, 1:].unflatten(2, grid)

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return tokens (B, 1 + n, width), the class token first, and the grid of the n patches."""
        x = self.patch_embed["proj"](x)
        grid = tuple(x.shape[2:])
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + self._positions(grid), grid

    def _positions(self, grid: tuple[int, ...]) -> Tensor:
        """Return the position embedding (1, 1 + n, width) of a grid of patches."""
        if tuple(grid) == (self.size.side,) * 2:
            return self.pos_embed
        table = self.pos_embed[:, 1:].mT.unflatten(2, (self.size.side,) * 2)
        table = nn.functional.interpolate(table.float(), size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).mT.to(self.pos_embed.dtype)], 1)
